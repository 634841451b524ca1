"""How good an encoder is, and of which samples that is said."""

from .names import EVALUATE, FEATURES, LINEAR, MONITOR, PROTOCOLS, SWEEP, Faults

_MODE = f"{SWEEP}::test_each_part_is_in_eval_mode_for_a_batch_and_in_its_own_between"

_SWEEP: Faults = {
    "sweep-in-training-mode": ("    module.eval()\n", "", _MODE),
    "sweep-leaves-eval-mode": ("            part.training = training\n", "            pass\n", _MODE),
    "all-of-the-encoder-goes-on-as-its-top": (
        "part.training = training",
        "part.training = module.training",
        _MODE,
    ),
    "sweep-of-this-rank": (
        "[collectives.rank() :: collectives.world_size()]",
        "[:: collectives.world_size()]",
        f"{MONITOR}::test_scores_are_the_same_on_1_and_2_ranks",
    ),
    "nothing-is-kept": (
        "list(self._read())",
        "[]",
        f"{SWEEP}::test_every_readable_sample_comes_once_in_each_pass[True]",
    ),
}

_MONITOR: Faults = {
    "monitor-is-its-own-neighbour": (
        "exclude_self=True",
        "exclude_self=False",
        f"{MONITOR}::test_classes_that_alternate_give_an_encoder_that_knows_nothing_no_score",
    ),
}

_PLACE = f"{FEATURES}::test_other_weights_other_data_and_other_samples_have_a_place_of_their_own"

_FEATURES: Faults = {
    "features-of-another-encoder": ('"encoder": encoder.digest', '"encoder": ""', _PLACE),
    "features-of-other-pixels": (
        "index.shard_versions",
        "[]",
        _PLACE,
    ),
    "features-of-other-samples": ('hashlib.sha256(ids.astype("<i8").tobytes()).hexdigest()', '""', _PLACE),
    "all-parts-are-the-first": (
        "self._part = self.num_good\n",
        "self._part = 0\n",
        f"{FEATURES}::test_what_is_kept_is_not_embedded_again_and_is_the_same_to_the_bit",
    ),
}

_LINEAR_IS = f"{PROTOCOLS}::test_linear_is_scikit_learns_logistic_regression"

_PROTOCOLS: Faults = {
    "judges-are-fitted": (
        "Regression(x[others], classes[others], num_classes)",
        "Regression(x, classes, num_classes)",
        _LINEAR_IS,
    ),
    "embeddings-keep-their-length": (
        "return F.normalize(torch.as_tensor(rows, device=device).double(), dim=1)",
        "return torch.as_tensor(rows, device=device).double()",
        _LINEAR_IS,
    ),
    "classes-by-their-place": (
        "known[predict(asked, w).cpu().numpy()]",
        "predict(asked, w).cpu().numpy()",
        f"{PROTOCOLS}::test_numbers_of_classes_may_have_gaps_and_a_class_the_bank_lacks_is_never_right[linear-v1]",
    ),
}

_MINIMUM = f"{LINEAR}::test_fit_finds_the_minimum_of_the_stated_objective[10.0]"
_CHUNK = f"{LINEAR}::test_the_minimum_does_not_depend_on_the_chunk"

_LINEAR: Faults = {
    "c-of-the-mean": ("decay = 1 / (c * n)", "decay = 1 / c", _MINIMUM),
    "decay-is-not-felt": ("(slope + decay * w)", "slope", _MINIMUM),
    "bias-of-the-centred": ("v[d:] - self.mean @ w", "v[d:]", _MINIMUM),
    "gradient-of-the-last-chunk": ("slope += rows.T @ error", "slope = rows.T @ error", _CHUNK),
}

_LABELLED: Faults = {
    "classes-by-number": (
        "replace(test, labels=labels)",
        "test",
        f"{EVALUATE}::test_labels_of_two_label_maps_are_compared_by_name",
    ),
}

_MEASURE: Faults = {
    "labels-of-the-unreadable-too": (
        "data.labels[np.searchsorted(data.ids, features.ids)]",
        "data.labels[: len(features.ids)]",
        f"{EVALUATE}::test_unreadable_images_are_left_out_with_their_labels",
    ),
}

_ZERO_SHOT: Faults = {
    "captions-keep-their-length": (
        "t = F.normalize(self.method.embed_text(fields).float(), dim=1)",
        "t = self.method.embed_text(fields).float()",
        "tests/platform/evaluate/test_zero_shot.py::"
        "test_a_class_stands_where_the_mean_of_its_unit_captions_points_to",
    ),
    "names-in-bytes-always": (
        "in_bytes(of) if self.vocabulary is None else",
        "in_bytes(of) if True else",
        "tests/pipelines/test_zero_shot.py::test_pairs_of_bytes_are_those_that_the_run_has_learned",
    ),
}

FAULTS = {
    "platform/evaluate/zero_shot.py": _ZERO_SHOT,
    "platform/evaluate/sweep.py": _SWEEP,
    "platform/evaluate/monitor.py": _MONITOR,
    "platform/evaluate/features.py": _FEATURES,
    "platform/evaluate/protocols.py": _PROTOCOLS,
    "platform/evaluate/linear.py": _LINEAR,
    "platform/evaluate/labelled.py": _LABELLED,
    "platform/evaluate/measure.py": _MEASURE,
}
