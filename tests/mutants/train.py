"""Batches in micro-batches, norm groups, the engine, the schedule."""

from .names import (
    BATCH_NORM,
    ENGINE,
    ENGINE_GROUPS,
    EXACT,
    MEMORY,
    MOCO,
    NORM_CHECK,
    NORMS,
    RECORDS,
    SCHEDULE,
    SIMCLR,
    Faults,
)

_EXACT: Faults = {
    "second-pass-draws-anew": (
        "forward(micros[i], seed, graph=True)",
        "forward(micros[i], seed + 1, graph=True)",
        f"{EXACT}::test_dropout_is_the_same_in_both_passes_and_on_any_rank",
    ),
    "draws-not-seeded": ("        torch.manual_seed(seed)\n", "", MOCO),
    "boundary-on-every-backward": (
        "i == len(seeds) - 1)",
        "True)",
        f"{EXACT}::test_gradients_do_not_depend_on_micro_batches[two-pass-toy]",
    ),
    "boundary-on-the-first": (
        "i == len(seeds) - 1)",
        "i == 0)",
        f"{EXACT}::test_gradients_do_not_depend_on_micro_batches[two-pass-toy]",
    ),
    "no-boundary": (
        "backward(losses.loss, True)",
        "backward(losses.loss, False)",
        f"{EXACT}::test_gradients_do_not_depend_on_micro_batches[kept-toy]",
    ),
    "student-collects-nothing": ("collect=graph)", "collect=False)", MOCO),
    "teacher-collects-nothing": ("collect=True)", "collect=False)", MOCO),
    "refused-step-collects": (
        "        norms.discard()\n        return None",
        "        return None",
        f"{EXACT}::test_refused_step_leaves_no_trace[kept]",
    ),
    "loss-told-as-0": (
        "if not proceed(losses.loss.detach()):",
        "if not proceed(losses.loss.detach() * 0):",
        RECORDS + "[mocov2]",
    ),
    "share-in-reverse": (
        "torch.cat(field) for field in zip(*parts)",
        "torch.cat(field[::-1]) for field in zip(*parts)",
        MOCO,
    ),
    "share-ids-in-reverse": (
        "ids=torch.cat([micro.ids for micro in micros])",
        "ids=torch.cat([micro.ids for micro in micros[::-1]])",
        f"{EXACT}::test_what_each_part_of_a_method_sees[two-pass]",
    ),
    "gradient-of-another-micro-batch": (
        "for micro_chunks in zip(*chunks)]",
        "for micro_chunks in zip(*chunks)][::-1]",
        MOCO,
    ),
    "criterion-under-autocast": (
        "    losses = method.criterion(out, targets, batch)",
        "    with autocast():\n        losses = method.criterion(out, targets, batch)",
        f"{EXACT}::test_what_each_part_of_a_method_sees[two-pass]",
    ),
    "targets-without-autocast": (
        "norms.samples(len(micro.ids), collect=True), autocast():",
        "norms.samples(len(micro.ids), collect=True):",
        f"{EXACT}::test_what_each_part_of_a_method_sees[two-pass]",
    ),
    "forward-without-autocast": (
        "collect=graph), autocast():",
        "collect=graph):",
        f"{EXACT}::test_what_each_part_of_a_method_sees[two-pass]",
    ),
    "targets-with-graph": (
        "with torch.no_grad(), norms",
        "with norms",
        f"{EXACT}::test_what_each_part_of_a_method_sees[two-pass]",
    ),
}

_NORMS: Faults = {
    "shared-norm-replaced-twice": (
        "                if child not in replaced:\n                    replaced[child]",
        "                if True:\n                    replaced[child]",
        f"{NORMS}::test_a_norm_that_is_used_in_two_places_stays_one",
    ),
    "running-mean-momentum-turned": (
        "torch._foreach_lerp_(running, found, momentum)",
        "torch._foreach_lerp_(running, found, 1 - momentum)",
        MOCO,
    ),
    "running-var-of-the-means": (
        "found = [scratch for layer in layers for scratch in layer.scratch]",
        "found = [scratch for layer in layers for scratch in layer.scratch[:1] * 2]",
        MOCO,
    ),
    "running-statistics-summed": ("            self._flat /= collectives.world_size()\n", "", MOCO),
    "running-statistics-of-this-rank": (
        "            dist.all_reduce(self._flat)\n            self._flat /= collectives.world_size()\n",
        "            pass\n",
        MOCO,
    ),
    "batches-not-counted": (
        "[layer.num_batches_tracked for layer in moved], 1)",
        "[layer.num_batches_tracked for layer in moved], 0)",
        MOCO,
    ),
    "last-group-counts-alone": (
        "setdefault(len(means) / layer.count,",
        "setdefault(1.0,",
        MOCO,
    ),
    "scratch-kept-after-the-step": ("        self.discard()\n\n", "\n", MOCO),
    "count-kept-after-the-step": ("            layer.count = 0\n", "            pass\n", MOCO),
    "biased-running-variance": (
        "rows / max(rows - 1, 1)",
        "1.0",
        f"{NORMS}::test_groups_are_runs_of_samples_over_all_views[2-2]",
    ),
    "rows-of-this-rank": (
        "            rows *= dist.get_world_size(norms.peers)\n",
        "",
        f"{NORMS}::test_groups_larger_than_a_share_equal_one_process[2-global]",
    ),
    "everybody-is-a-peer": (
        "if size == collectives.world_size():",
        "if True:",
        f"{NORMS}::test_groups_larger_than_a_share_equal_one_process[4-6]",
    ),
    "statistics-of-the-batch-in-eval": (
        "self.weight, self.bias, False, 0.0, self.eps",
        "self.weight, self.bias, True, 0.0, self.eps",
        f"{NORMS}::test_installing_changes_neither_state_dict_nor_plain_results",
    ),
}

_ALIKE = f"{NORMS}::test_a_group_of_one_image_gives_no_gradient_and_the_others_give_theirs"
_FLOAT64 = f"{BATCH_NORM}::test_statistics_and_gradient_equal_float64"
_PEERS = f"{NORMS}::test_groups_larger_than_a_share_equal_one_process[2-global]"

_ALIKE_FAULTS: Faults = {
    "alike-by-itself": (
        "(spreads <= ALIKE * sizes) & (spreads < UNUSUAL * usual[:, None])",
        "spreads <= ALIKE * sizes",
        f"{NORMS}::test_rows_that_vary_as_little_as_usual_are_not_alike",
    ),
    "initial-variances-are-usual": (
        " - first).clamp(min=0)",
        ").clamp(min=0)",
        f"{NORMS}::test_rows_that_vary_as_little_as_usual_are_not_alike",
    ),
    "nothing-is-alike-at-first": (
        "torch.where(updates == 0, torch.inf, own",
        "torch.where(updates == 0, 0.0, own",
        f"{_ALIKE}[0]",
    ),
    "never-alike": ("return alike.cumsum(0) == 0", "return alike.cumsum(0) >= 0", f"{_ALIKE}[3]"),
    "alike-is-forgotten-behind-a-layer": (
        "return alike.cumsum(0) == 0",
        "return ~alike",
        f"{NORMS}::test_a_group_of_one_image_gives_none_behind_a_norm_that_has_blown_its_rounding_up",
    ),
}

_NORMS |= {
    "alike-of-the-step-before": (
        "        self._seen = []\n        for",
        "        for",
        f"{_ALIKE}[3]",
    ),
}

_BATCH_NORM: Faults = {
    "rows-one-by-one": (
        "split(min(ROWS, math.isqrt(len(x))))",
        "split(len(x))",
        f"{_FLOAT64}[a projector]",
    ),
    "rows-not-side-by-side": (
        "math.gcd(len(x), max(1, COLUMNS // C))",
        "1",
        f"{BATCH_NORM}::test_a_tile_holds_many_rows",
    ),
    "views-apart": (
        "for view in x.split(self.samples))",
        "for view in [x])",
        f"{NORMS}::test_groups_are_runs_of_samples_over_all_views[2-2]",
    ),
    "tiles-of-one-weight": (
        "means.new_tensor(lengths)",
        "means.new_full((len(lengths),), sum(lengths) / len(lengths))",
        f"{_FLOAT64}[tiles of unequal length]",
    ),
    "contiguous-in-half": (
        "tile if tile.dim() == 2 else tile.to(dtype)",
        "tile",
        f"{_FLOAT64}[contiguous, far from zero, bf16]",
    ),
    "variance-within-tiles-only": (
        "(variances + (means - mean).square())",
        "variances",
        f"{_FLOAT64}[channels last]",
    ),
    "variance-within-ranks-only": (
        "_sum(var + (mean - common).square(), peers)",
        "_sum(var, peers)",
        _PEERS,
    ),
    "gradient-of-this-rank": (
        "dist.get_world_size(ctx.peers), _sum(sums, ctx.peers)",
        "dist.get_world_size(ctx.peers), sums",
        _PEERS,
    ),
    "gradient-in-one-pass": (
        "if ctx.peers is None and (x.is_cuda or x.dtype in _HALF):",
        "if ctx.peers is None:",
        f"{_FLOAT64}[channels last]",
    ),
    "gradient-of-alike-groups": (
        "        inverse_std = inverse_std * passes\n",
        "",
        f"{_ALIKE}[3]",
    ),
    "bias-of-alike-groups": ("torch.where(passes, sums, 0)", "sums", f"{_ALIKE}[3]"),
}

_CHECK = f"{NORM_CHECK}::test_rows_that_are_not_whole_views_of_the_samples_in_order_are_found"

_NORM_CHECK: Faults = {
    "norms-with-a-forward-of-their-own": (
        " and type(layer).forward in _FORWARDS",
        "",
        f"{NORM_CHECK}::test_norms_with_statistics_that_we_do_not_replace_are_named",
    ),
    "first-sample-only": ("[:, :n]", "[:, :1]", f"{_CHECK}[reversed]"),
    "rows-not-counted": (
        "if len(rows) % n or len(more) != 2 * len(rows):",
        "if False:",
        f"{_CHECK}[a row left out]",
    ),
    "rows-not-compared": ("> _ROUNDING *", "> 1e9 *", f"{_CHECK}[rolled]"),
}

_AS_IF = f"{ENGINE_GROUPS}::test_a_frozen_group_is_to_the_optimiser_as_if_it_had_no_gradient"
_PLAIN = f"{ENGINE}::test_three_steps_equal_plain_torch_at_every_stage"
_PAIRS = f"{ENGINE}::test_state_by_name_is_bit_equal_across_stages_and_world_sizes"
_NAN = f"{ENGINE}::test_nan_on_one_rank_skips_the_step_on_all_and_leaves_no_trace"

_ENGINE: Faults = {
    "first-weights-may-be-gains": (
        "parameter.requires_grad and parameter.dim() > 1 and",
        "parameter.requires_grad and",
        "tests/platform/train/test_engine.py::test_first_weights_of_a_vit_are_of_a_layer_that_trains",
    ),
    "frozen-weights-decay": ("                parameter.grad = None\n", "                pass\n", _AS_IF),
    "frozen-gradient-stays": (
        "                    gradient.zero_()\n",
        "                    pass\n",
        _AS_IF,
    ),
    "frozen-a-step-too-long": (
        '< group["frozen_until"]',
        '<= group["frozen_until"]',
        _AS_IF,
    ),
    "thawed-group-stays-frozen": (
        'group["frozen"] = progress',
        'group["frozen"] |= progress',
        _AS_IF,
    ),
    "group-lr-ignored": (
        'group["base_lr"] * group',
        "self._lr * group",
        f"{ENGINE_GROUPS}::test_a_group_has_its_own_learning_rate",
    ),
    "group-schedule-ignored": ('group["schedule"].at', "self._schedule.at", _PLAIN),
    "decay-of-the-start": ('group["decay"].at(progress,', 'group["decay"].at(0,', _PLAIN),
    "frozen-by-progress-not-epoch": ("= progress * self._epochs < group", "= progress < group", SIMCLR),
    "frozen-for-ever": ("= progress * self._epochs < group", "= 0 < group", SIMCLR),
    "fp32-rounds-factors": (
        '            torch.set_float32_matmul_precision("highest")\n',
        "",
        f"{ENGINE}::test_fp32_is_fp32_inside_convolutions_and_products",
    ),
    "no-clipping": ('"gradient_clipping": clip or 0.0', '"gradient_clipping": 0.0', _PLAIN),
    "lr-not-scaled-to-the-batch": (
        "self._lr, self._device, self._precision = effective_lr(optim, global_batch),",
        "self._lr, self._device, self._precision = optim.lr,",
        MOCO,
    ),
    "gradient-norm-of-a-part": (
        "                dist.all_reduce(squares)\n",
        "                pass\n",
        _PLAIN,
    ),
    "step-though-not-finite": ("        if finite:\n", "        if True:\n", _NAN),
    "buffers-of-each-rank": (
        "            dist.broadcast(buffer, 0)\n",
        "            pass\n",
        f"{ENGINE}::test_parameters_and_buffers_start_as_on_rank_0",
    ),
    "gradients-left-at-stage-2": (
        "            for i in range(len(self._partitions)):  # stage 2",
        "            for i in range(0):  # stage 2",
        _NAN,
    ),
    "master-weights-not-loaded": ("                partition.write_master()\n", "", f"{_PAIRS}[sgd]"),
    "optimiser-state-not-loaded": (
        "                    partition.write(self._optimizer.state, slot, values)\n",
        "                    pass\n",
        f"{_PAIRS}[sgd]",
    ),
    "piece-of-rank-0": ("dist.broadcast(piece, rank)", "dist.broadcast(piece, 0)", f"{_PAIRS}[sgd]"),
    "slice-of-rank-0": (
        ".chunk(dist.get_world_size())[dist.get_rank()])",
        ".chunk(dist.get_world_size())[0])",
        f"{_PAIRS}[sgd]",
    ),
    "step-count-not-loaded": (
        "            state[self._slice][slot].copy_(values[self.names[0]])\n",
        "            pass\n",
        f"{_PAIRS}[adamw]",
    ),
    "not-channels-last": (
        "            method.to(memory_format=torch.channels_last)",
        "            method.to(memory_format=torch.contiguous_format)",
        f"{ENGINE}::test_weights_are_channels_last_and_the_state_is_a_copy",
    ),
    "state-is-no-copy": (
        'to("cpu", copy=True)',
        'to("cpu")',
        f"{ENGINE}::test_weights_are_channels_last_and_the_state_is_a_copy",
    ),
}

_SCHEDULE: Faults = {
    "warm-up-from-1": ("* (progress / warmup)", "* (1 - progress / warmup)", SCHEDULE),
    "warm-up-from-0": ("return start + (self.peak - start)", "return self.peak", SCHEDULE),
    "a-step-an-epoch-late": (
        "if epoch / epochs <= progress",
        "if (epoch + 1) / epochs <= progress",
        SCHEDULE,
    ),
    "cosine-turned": ("(1 + math.cos(math.pi * t))", "(1 - math.cos(math.pi * t))", SCHEDULE),
    "cosine-over-the-whole-run": ("t = (progress - warmup) / (1 - warmup)", "t = progress", SCHEDULE),
}

_MEMORY: Faults = {
    "views-take-no-memory": (
        "    for view in batch.views:\n        pack(view)\n",
        "",
        f"{MEMORY}::test_views_count_whether_or_not_the_graph_keeps_them",
    ),
}

FAULTS = {
    "platform/train/memory.py": _MEMORY,
    "platform/train/exact.py": _EXACT,
    "platform/train/norms.py": _NORMS,
    "platform/train/alike.py": _ALIKE_FAULTS,
    "platform/train/batch_norm.py": _BATCH_NORM,
    "platform/train/norm_check.py": _NORM_CHECK,
    "platform/train/engine.py": _ENGINE,
    "methods/schedule.py": _SCHEDULE,
}
