"""Which samples come, and as which views."""

from .names import CROP, OPS, PLAN, RNG, STREAM, VIEWS, Faults

_ORDER: Faults = {
    "order-ignores-the-epoch": (
        "_ORDER, seed, epoch)",
        "_ORDER, seed)",
        f"{PLAN}::test_golden_order",
    ),
    "order-ignores-the-seed": (
        "_ORDER, seed, epoch)",
        "_ORDER, 0, epoch)",
        f"{PLAN}::test_golden_order",
    ),
}

_PLAN: Faults = {
    "probe-is-the-orders-stream": (
        "_MONITORED = 0x50524F42,",
        "_MONITORED = 0x504C414E,",
        f"{PLAN}::test_order_and_probe_come_from_streams_of_their_own",
    ),
    "probe-ignores-the-position": (
        "rng.mix(_PROBE, self.seed, epoch, position)",
        "rng.mix(_PROBE, self.seed, epoch)",
        f"{PLAN}::test_order_and_probe_come_from_streams_of_their_own",
    ),
    "probe-does-not-wrap": (
        "(draw + step) % len(ids)",
        "draw % len(ids)",
        f"{PLAN}::test_candidates_are_the_unused_tail_then_everything",
    ),
    "positions-of-32-bits": (
        "positions, (p, q) = np.asarray(positions, np.int64)",
        "positions, (p, q) = np.asarray(positions).astype(np.int32)",
        f"{PLAN}::test_ids_and_positions_have_64_bits",
    ),
    "held-out-id-trains": (
        "(ids >= self._held(run))",
        "(ids > self._held(run))",
        f"{PLAN}::test_every_id_is_either_held_out_or_at_one_training_position[10-0.5]",
    ),
    "holdout-of-another-stream": (
        "_drawn(_HELD, run",
        "_drawn(_MONITORED, run",
        f"{PLAN}::test_golden_holdout",
    ),
    "holdout-by-the-seed": (
        "rng.mix(use, numbers)",
        "rng.mix(use, numbers, 0)",
        f"{PLAN}::test_golden_holdout",
    ),
    "shares-overlap": (
        "[rank * share : (rank + 1) * share]",
        "[rank : rank + share]",
        f"{PLAN}::test_no_id_twice_in_an_epoch_for_any_number_of_workers",
    ),
    "batches-overlap": (
        "[batch * self.global_batch : (batch + 1) * self.global_batch]",
        "[batch : batch + self.global_batch]",
        f"{PLAN}::test_no_id_twice_in_an_epoch_for_any_number_of_workers",
    ),
}

_RESIZE = f"{CROP}::test_resize_equals_pillow"
_CROPS = f"{STREAM}::test_crops_are_those_of_sample_epoch_and_seed"
_ROWS = f"{STREAM}::test_rows_are_the_planned_ones_however_far_the_run_is"

_STREAM: Faults = {
    "stream-ids-of-32-bits": (
        "ids = np.empty(len(positions), np.int64)",
        "ids = np.empty(len(positions), np.int32)",
        _ROWS,
    ),
    "stream-positions-of-32-bits": (
        "in_epoch = run_positions - epochs",
        "in_epoch = run_positions.astype(np.int32) - epochs",
        _ROWS,
    ),
    "stream-starts-at-0": ("steps = start_step + positions // share", "steps = positions // share", _ROWS),
    "stream-of-rank-0": (
        "steps * size + rank * share + positions % share",
        "steps * size + positions % share",
        _ROWS,
    ),
    "stand-in-of-the-run's-position": (
        "self.replacement(int(epochs[row]), int(in_epoch[row]))",
        "self.replacement(int(epochs[row]), int(run_positions[row]))",
        _ROWS,
    ),
    "stand-in-of-epoch-0": ("self.replacement(int(epochs[row]),", "self.replacement(0,", _ROWS),
    "stand-in-not-told": (
        "(ids, run_positions, bad, epochs,",
        "(ids, run_positions, bad & False, epochs,",
        _ROWS,
    ),
    "crops-of-epoch-0": ("cut(pictures, ids, epochs, self", "cut(pictures, ids, 0, self", f"{_CROPS}[5]"),
    "crops-ignore-the-seed": ("self.views, self.plan.seed)", "self.views, 0)", f"{_CROPS}[0]"),
    "crops-of-positions": ("cut(pictures, ids, epochs", "cut(pictures, positions, epochs", f"{_CROPS}[0]"),
}

_RECORDS = f"{CROP}::test_records_hold_the_drawn_crops_and_small_pictures_whole"

_CROP: Faults = {
    "all-crops-are-view-0": (
        "draw.Counter.of(seed, ids, epochs, view)",
        "draw.Counter.of(seed, ids, epochs, 0)",
        _RECORDS,
    ),
    "crops-are-not-flipped": ("resized[:, :, ::-1] if flip", "resized[:, :, ::-1] if False", _RESIZE),
    "kinds-of-layout-one-side-too-soon": (
        "np.unique([0, *sizes, *",
        "np.unique([0, *(size - 1 for size in sizes), *",
        f"{CROP}::test_layouts_change_only_at_their_ends[sizes5]",
    ),
    "a-crop-too-far": (
        "end += 3 * size**2 if side > size else 0",
        "end += 3 * size**2",
        f"{CROP}::test_what_travels_follows_from_the_pictures_size",
    ),
    "a-picture-of-the-views-size-is-resized": (
        "end if side > size else -1",
        "end if side >= size else -1",
        f"{CROP}::test_what_travels_follows_from_the_pictures_size",
    ),
}

_DRAWN = f"{VIEWS}::test_every_draw_comes_from_the_stream_of_its_operation"

_WORDS = "cls(seed, ids[:, None], epochs if isinstance(epochs, int) else epochs[:, None], view)"

_DRAW: Faults = {
    "solarise-from-the-blurs-stream": (
        "chance(SOLARIZE, spec.solarize)",
        "chance(BLUR, spec.solarize)",
        _DRAWN,
    ),
    "sigma-from-the-blurs-stream": ("uniform(*counter, SIGMA, 0)", "uniform(*counter, BLUR, 0)", _DRAWN),
    "gray-from-the-jitters-stream": ("chance(GRAY, spec.gray)", "chance(JITTER, spec.gray)", _DRAWN),
    "draws-ignore-the-view": (
        _WORDS,
        _WORDS.replace("view)", "0)"),
        _DRAWN,
    ),
    "one-draw-for-the-whole-batch": (
        _WORDS,
        _WORDS.replace("ids[:, None]", "ids[:1, None] + 0 * ids[:, None]"),
        _DRAWN,
    ),
    "draws-ignore-the-epoch": (
        _WORDS,
        "cls(seed, ids[:, None], 0, view)",
        _DRAWN,
    ),
    "turn-s-way-from-its-chance": ("uniform(*counter, TURN, 1)", "uniform(*counter, TURN, 0)", _DRAWN),
    "grain-of-the-sigma-s-stream": ("mix(*counter, GRAIN)", "mix(*counter, NOISE_SIGMA)", _DRAWN),
    "all-layers-of-rand-augment-alike": (
        "layers = np.arange(spec.rand_augment)",
        "layers = np.zeros(spec.rand_augment, int)",
        "tests/platform/augment/test_rand_augment.py::test_every_draw_comes_from_its_own_stream",
    ),
    "drawn-ids-of-32-bits": (
        _WORDS,
        _WORDS.replace("ids[:, None]", "ids[:, None].astype(np.int32)"),
        _DRAWN,
    ),
    "top-and-left-swapped": (
        "where = uniform(*counter, POSITION, np.arange(2))",
        "where = uniform(*counter, POSITION, np.arange(2))[:, ::-1]",
        _DRAWN,
    ),
}

_ADDED = f"{VIEWS}::test_what_is_added_to_a_preset_equals_torchvision_with_the_drawn_parameters"

_STEPS: Faults = {
    "solarise-from-the-next-level-on": (
        "spec.solarize_threshold / 255",
        "(spec.solarize_threshold + 1) / 255",
        f"{VIEWS}::test_solarize_inverts_from_its_level_on",
    ),
    "turns-by-one-quarter-less": ("quarter_turns_(part, k + 1)", "quarter_turns_(part, k)", _ADDED),
    "gray-before-rand-augment": ("if not steps.layers:", "if steps.layers:", _ADDED),
    "cutout-from-its-corner": (" - side // 2\n", "\n", _ADDED),
    "noise-of-another-sample": (
        "draw.grain(drawn.noise_key[drawn.noise]",
        "draw.grain(drawn.noise_key[: drawn.noise.sum()]",
        f"{VIEWS}::test_a_view_is_the_same_bit_for_bit_in_any_batch",
    ),
}

_RAND = "tests/platform/augment/test_rand_augment.py"
_EACH = f"{_RAND}::test_each_operation_equals_torchvision_at_each_sample_s_level"

_RAND_AUGMENT: Faults = {
    "maps-one-way-only": ("most * levels[mask] * signs[mask]", "most * levels[mask]", f"{_EACH}[rotate]"),
    "levels-of-the-first-samples": (
        "_ARGUMENTS[name](levels[mask])",
        "_ARGUMENTS[name](levels[: mask.sum()])",
        f"{_RAND}::test_samples_take_their_own_operations_and_those_without_one_stay",
    ),
    "bits-from-the-other-end": ("np.floor(4 * level)", "4 - np.floor(4 * level)", f"{_EACH}[posterize]"),
}

_TONES: Faults = {
    "a-flat-colour-is-stretched": (
        "x.sub_(low * (1 - flat))",
        "x.sub_(low)",
        "tests/platform/augment/test_tones.py::test_without_a_parameter_equals_torchvision",
    ),
    "equalized-to-the-upper-edge": (
        "(below - counts + step // 2)",
        "(below + step // 2)",
        "tests/platform/augment/test_tones.py::test_equalize_equals_pillow_on_its_levels",
    ),
}

_WARPS: Faults = {
    "shears-about-the-middle": (
        "_matrices(b=factor, c=factor * size / 2, like=factor)",
        "_matrices(b=factor, like=factor)",
        f"{_EACH}[shear_x]",
    ),
    "black-beyond-the-border": ("(pixels - fill) * inside + fill", "pixels", f"{_EACH}[translate_y]"),
}

_FILTERS: Faults = {
    "sharpness-changes-a-copy": (
        "inner = x[:, :, 1:-1, 1:-1]",
        "inner = x[:, :, 1:-1, 1:-1].clone()",
        "tests/platform/augment/test_filters.py::test_sharpness_equals_torchvision",
    ),
    "edges-across-only": (
        "(dx * dx + dy * dy) / 2",
        "(dx * dx + dx * dx) / 2",
        "tests/platform/augment/test_filters.py::test_sobel_is_the_length_of_opencv_s_gradient_over_the_longest",
    ),
}

_VIEWS: Faults = {
    "all-views-are-view-0": (
        "draw.Counter.of(self.seed, ids, epoch, view)",
        "draw.Counter.of(self.seed, ids, epoch, 0)",
        f"{VIEWS}::test_views_equal_torchvision_with_the_drawn_parameters[simclr-cifar-32]",
    ),
}

_OPS: Faults = {
    "solarise-above-the-threshold": (
        "(x >= threshold)",
        "(x > threshold)",
        f"{OPS}::test_gray_and_solarize_equal_torchvision",
    ),
}

_RNG: Faults = {
    "words-of-32-bits": (
        "array.astype(np.int64).view(np.uint64) if",
        "array.astype(np.int32).astype(np.int64).view(np.uint64) if",
        f"{RNG}::test_mix_equals_transcription_and_broadcasts",
    ),
    "uniform-from-the-low-bits": (
        "(mix(*words) >> np.uint64(11)) * 2.0**-53",
        "(mix(*words) & np.uint64(2**53 - 1)) * 2.0**-53",
        f"{RNG}::test_golden_values",
    ),
}

_CAPTIONS: Faults = {
    "one-template-for-all-epochs": (
        "rng.mix(_CAPTION, seed, ids, epochs)",
        "rng.mix(_CAPTION, seed, ids)",
        "tests/platform/data/test_captions.py::"
        "test_a_caption_is_of_the_class_and_follows_from_seed_sample_and_epoch",
    ),
}

_VOCABULARY: Faults = {
    "one-template-teaches": (
        "range(len(captions.templates))",
        "range(1)",
        "tests/platform/data/test_vocabulary.py::test_it_is_learned_from_every_template_of_every_class",
    ),
    "the-first-texts-teach": (
        "for part in parts]",
        "for part in parts[:1]]",
        "tests/platform/data/test_vocabulary.py::test_what_is_read_lies_all_over_the_set",
    ),
    "what-is-held-out-teaches": (
        "plan.training_ids(part[:NEIGHBOURS])",
        "part[:NEIGHBOURS]",
        "tests/platform/data/test_vocabulary.py::"
        "test_it_is_learned_from_what_can_be_read_of_the_training_samples",
    ),
}

FAULTS = {
    "platform/data/vocabulary.py": _VOCABULARY,
    "platform/data/captions.py": _CAPTIONS,
    "platform/data/order.py": _ORDER,
    "platform/data/plan.py": _PLAN,
    "platform/data/stream.py": _STREAM,
    "platform/augment/crop.py": _CROP,
    "platform/augment/draw.py": _DRAW,
    "platform/augment/views.py": _VIEWS,
    "platform/augment/ops.py": _OPS,
    "platform/augment/steps.py": _STEPS,
    "platform/augment/rand_augment.py": _RAND_AUGMENT,
    "platform/augment/tones.py": _TONES,
    "platform/augment/warps.py": _WARPS,
    "platform/augment/filters.py": _FILTERS,
    "platform/augment/rng.py": _RNG,
}
