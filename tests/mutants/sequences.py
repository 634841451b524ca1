"""Predictive coding: candidates, contexts, signals and patches."""

from .names import PARTS, Faults

_RANKS = "tests/methods/test_rank_invariance.py::test_losses_and_gradients_are_those_of_one_rank"
_SEQUENCES, _CPC, _CPC_V2 = (
    f"{PARTS}/test_sequences.py",
    "tests/methods/test_cpc.py",
    "tests/methods/test_cpc_v2.py",
)

FAULTS: dict[str, Faults] = {
    "methods/parts/sequences.py": {
        "places-without-the-rank": (
            "own + len(rows) * collectives.rank()",
            "own",
            f"{_RANKS}[2-cpc-0-small]",
        ),
        "predictions-counted-by-each-rank": (
            "collectives.mean(counted.sum())",
            "counted.sum()",
            f"{_SEQUENCES}::test_codes_that_are_not_real_leave_ranks_equal_to_one[2]",
        ),
        "padding-among-the-candidates": (
            "allowed &= candidates.real[places]",
            "pass",
            f"{_SEQUENCES}::test_loss_equals_float64_transcription[True-1-all]",
        ),
        "present-code-among-the-candidates": (
            "allowed &= places != now",
            "pass",
            f"{_SEQUENCES}::test_closed_forms",
        ),
        "positive-among-its-negatives": (
            "return places + (places >= now.flatten()[:, None] + distance).long()",
            "return places",
            f"{_SEQUENCES}::test_draws_estimate_the_loss_of_as_many_candidates_and_never_take_the_positive[own_sequence]",
        ),
        "context-sees-the-next-step": (
            "nn.ZeroPad2d((1, 0, 0, 0))",
            "nn.ZeroPad2d((0, 1, 0, 0))",
            f"{_SEQUENCES}::test_a_context_knows_nothing_of_what_comes[Masked]",
        ),
    },
    "methods/parts/signals.py": {
        "padding-counted-as-codes": (
            "lengths - _kernel(stride), stride",
            "lengths, stride",
            f"{PARTS}/test_signals.py::test_a_code_is_of_what_lies_below_it[layer-waves]",
        ),
    },
    "methods/parts/patches.py": {
        "one-draw-for-all-views": (
            "stream=PATCHES + view",
            "stream=PATCHES",
            f"{PARTS}/test_patches.py::test_each_patch_draws_for_itself_from_sample_view_and_progress[settings0]",
        ),
        "one-warp-for-all-views": (
            "stream=WARPS + view",
            "stream=WARPS",
            f"{PARTS}/test_patches.py::test_each_patch_draws_for_itself_from_sample_view_and_progress[settings1]",
        ),
        "shears-one-by-one": (
            "x = x + along_x * y",
            "x = x + along_x * place[:, None]",
            f"{PARTS}/test_patches.py::test_a_shear_is_torchvision_s_by_two_angles_of_each_patch",
        ),
        "warps-beside-the-asked-for-share": (
            "return torch.where(touched, seen.to(patches.dtype), patches)",
            "return seen.to(patches.dtype)",
            f"{PARTS}/test_patches.py::test_a_share_of_the_patches_is_warped_and_the_others_stay_bit_equal",
        ),
    },
    "methods/parts/observations.py": {
        "windows-from-the-start": (
            "(u * (spare + 1)).long()",
            "(u * 0).long()",
            f"{_CPC}::test_a_window_falls_where_the_draw_of_sample_and_progress_says_and_stays_inside",
        ),
        "columns-for-rows": (
            "permute(0, 1, 4, 3, 2)",
            "permute(0, 1, 3, 4, 2)",
            f"{_CPC}::test_an_image_is_rows_of_patches_top_down_in_lanes_of_columns",
        ),
    },
    "methods/cpc_v2.py": {
        "targets-of-one-direction": (
            "score(turned(y_bvltd, direction).flatten(1, 2)",
            "score(y_bvltd.flatten(1, 2)",
            f"{_CPC_V2}::test_loss_equals_float64_transcription[0]",
        ),
        "upwards-looks-down": (
            'if direction in ("up", "left")',
            'if direction in ("left",)',
            f"{_CPC_V2}::test_each_direction_sees_only_what_it_has_passed[up]",
        ),
    },
}
