"""Parts that methods share: banks and queues, networks, norms, heads, texts, collectives."""

from .names import PARTS, SIMCLR, Faults

_QUEUE: Faults = {
    "queue-pointer-stands": (
        "        self.pointer.add_(len(rows)).remainder_(size)\n",
        "",
        f"{PARTS}/test_queue.py",
    ),
    "queue-pointer-runs-out": (".remainder_(size)", "", f"{PARTS}/test_queue.py"),
    "oldest-rows-survive": ("rows[-size:]", "rows[:size]", f"{PARTS}/test_queue.py"),
}

_VIT = f"{PARTS}/test_vision_transformer.py"

_NORM_TESTS = f"{PARTS}/test_norms.py"

_VISION_TRANSFORMER: Faults = {
    "columns-before-rows": ("    row, column = (", "    column, row = (", _VIT),
    "positions-learn": ("    network.pos_embed.requires_grad_(False)\n", "", _VIT),
    "patches-learn": ("proj.requires_grad_(False)", "proj.requires_grad_(True)", _VIT),
}

_METHOD_NORMS: Faults = {
    "weights-not-centred": ("return (centred / (rows", "return (rows / (rows", _NORM_TESTS),
    "unbiased-weights": ("dim=1, correction=0, keepdim", "dim=1, correction=1, keepdim", _NORM_TESTS),
    "narrow-groups": (" and channels // g >= AT_LEAST", "", _NORM_TESTS),
}

_EMA: Faults = {
    "teacher-drops-paths": ("            module.drop_prob = 0.0\n", "            pass\n", _VIT),
    "momentum-turned": ("new, 1 - momentum)", "new, momentum)", f"{PARTS}/test_ema.py"),
    "teacher-learns": (".float().requires_grad_(False)", ".float()", f"{PARTS}/test_ema.py"),
    "teacher-in-half-precision": (
        "copy.deepcopy(student).float()",
        "copy.deepcopy(student)",
        f"{PARTS}/test_ema.py::test_thousand_steps_move_by_the_exact_fraction[0.99-student_dtype1]",
    ),
}

_METHODS = "tests/methods"

_BANK: Faults = {
    "bank-rows-of-this-rank": (
        "ids, vectors = collectives.gather(ids), collectives.gather(vectors)",
        "pass",
        f"{_METHODS}/test_rank_invariance.py::"
        "test_state_is_the_same_on_every_rank_and_that_of_one_rank[2-inst_disc-0-small]",
    ),
    "the-earlier-vector-counts": (
        "self.rows[ids] = rows[last]",
        "self.rows[ids] = rows[(ids[:, None] == ids).int().argmax(dim=1)]",
        f"{PARTS}/test_bank.py::test_of_an_id_that_comes_twice_the_later_vector_counts_once",
    ),
}

_DRAWS: Faults = {
    "draws-ignore-progress": (
        "moment = int(progress * 2**52)",
        "moment = 0",
        f"{PARTS}/test_bank.py::test_draws_follow_from_seed_id_and_progress_alone",
    ),
}

_JIGSAW: Faults = {
    "pieces-in-one-order": (
        "z = z.gather(1, order[..., None].expand_as(z)).flatten(1)",
        "z = z.flatten(1)",
        f"{_METHODS}/test_infomin.py::test_order_and_places_are_of_each_sample_and_moment",
    ),
}

_MULTI_CROP: Faults = {
    "small-crops-as-targets": (
        "for t in range(num_large) for s in range(t + 1",
        "for t in range(num_views) for s in range(t + 1",
        "tests/methods/test_barlow_twins.py::"
        "test_loss_of_many_views_is_the_mean_over_pairs_with_a_full_size_one[2-5]",
    ),
}

_FORWARDING: Faults = {
    "small-crops-one-by-one": (
        "*small]]",
        "*([view] for some in small for view in some)]]",
        f"{PARTS}/test_forwarding.py",
    ),
    "head-once-a-size": (
        "head(_cat([encoder(_cat(same)) for same in sizes]))",
        "_cat([head(encoder(_cat(same))) for same in sizes])",
        f"{PARTS}/test_forwarding.py",
    ),
}

_TEXT: Faults = {
    "text-looks-ahead": (
        "block(x, is_causal=True)",
        "block(x)",
        f"{PARTS}/test_text.py::test_what_a_text_says_depends_neither_on_padding_nor_on_the_others",
    ),
    "what-stands-last": (
        "return at(self.norm(x), end)",
        "return at(self.norm(x), end * 0 + x.shape[1] - 1)",
        f"{PARTS}/test_text.py::test_what_a_text_says_depends_neither_on_padding_nor_on_the_others",
    ),
    "cut-text-without-an-end": (
        "length.clamp(max=context - 2) + 1",
        "length.clamp(max=context - 1) + 1",
        f"{PARTS}/test_text.py::test_a_long_text_is_cut_and_still_has_an_end",
    ),
    "end-is-a-word-of-the-vocabulary": (
        "ids, vocabulary + 1)",
        "ids, vocabulary - 1)",
        f"{PARTS}/test_text.py::test_start_and_end_are_the_first_two_numbers_beyond_the_vocabulary",
    ),
}

_COLLECTIVES: Faults = {
    "gathered-gradient-of-this-rank": (
        "        grad = grads[0].contiguous().clone()\n        dist.all_reduce(grad)\n        return grad[rank()",
        "        grad = grads[0].contiguous().clone()\n        return grad[rank()",
        SIMCLR,
    ),
    "gathered-gradient-of-rank-0": (
        "grad[rank() * ctx.rows : (rank() + 1) * ctx.rows]",
        "grad[: ctx.rows]",
        SIMCLR,
    ),
}

_BACKBONES_TEST = "tests/methods/parts/test_backbones.py"

_BACKBONES: Faults = {
    "edges-of-the-features-only": (
        "return super().forward(edges.gradient(images))",
        "return super().forward(images[:, :2])",
        f"{_BACKBONES_TEST}::test_edges_are_seen_in_the_place_of_colours[resnet18-settings0]",
    ),
    "kernels-chosen-by-few": (
        "max(_LEAST_SELECTING, int(",
        "max(1, int(",
        f"{_BACKBONES_TEST}::test_selective_kernels_are_chosen_by_as_many_channels_as_the_ratio_says",
    ),
}

_EDGES: Faults = {
    "edges-across-twice": (
        "torch.stack([across, across.T])",
        "torch.stack([across, across])",
        "tests/methods/parts/test_edges.py::test_gradient_is_opencv_s_of_the_mean_colour_with_the_official_signs",
    ),
}

FAULTS = {
    "methods/parts/backbones.py": _BACKBONES,
    "methods/parts/edges.py": _EDGES,
    "methods/parts/queue.py": _QUEUE,
    "methods/parts/ema.py": _EMA,
    "methods/parts/norms.py": _METHOD_NORMS,
    "methods/parts/vision_transformer.py": _VISION_TRANSFORMER,
    "methods/parts/bank.py": _BANK,
    "methods/parts/draws.py": _DRAWS,
    "methods/parts/jigsaw.py": _JIGSAW,
    "methods/parts/multi_crop.py": _MULTI_CROP,
    "methods/parts/forwarding.py": _FORWARDING,
    "methods/parts/text.py": _TEXT,
    "methods/collectives.py": _COLLECTIVES,
}
