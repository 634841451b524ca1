"""Methods of clusters and of centred softmaxes, and their parts."""

from .names import PARTS, Faults

_RANKS = "tests/methods/test_rank_invariance.py::test_losses_and_gradients_are_those_of_one_rank"
_SINKHORN = f"{PARTS}/test_sinkhorn.py"
_SWAV, _DINO, _MOCO_V3, _V1, _V2 = (
    f"tests/methods/test_{name}.py" for name in ("swav", "dino", "moco_v3", "deep_cluster", "deep_cluster_v2")
)
_TOUCHES = "tests/platform/train/test_engine_touches.py"

FAULTS: dict[str, Faults] = {
    "methods/parts/sinkhorn.py": {
        "codes-of-each-rank": ("collectives.sum(q.sum(dim=0))", "q.sum(dim=0)", f"{_RANKS}[2-swav-0-small]"),
        "codes-not-shifted": (
            "((s - collectives.maximum(largest)) / epsilon)",
            "(s / epsilon)",
            f"{_SINKHORN}::test_half_precision_scores_neither_overflow_nor_stay_half",
        ),
        "rows-before-columns": (
            "q.sum(dim=0)) * num_prototypes",
            "q.sum(dim=0)) * 0 + 1",
            f"{_SINKHORN}::test_codes_equal_the_published_loops",
        ),
    },
    "methods/parts/prototypes.py": {
        "a-view-predicts-itself": (
            "all_pairs[:, t, s]",
            "all_pairs[:, t, t]",
            f"{_SWAV}::test_loss_equals_float64_transcription",
        ),
        "prototypes-not-normalised": (
            "F.normalize(full(self.weight), dim=1)",
            "full(self.weight)",
            f"{PARTS}/test_prototypes.py::test_scores_are_cosines_of_rows_that_start_as_unit_vectors",
        ),
    },
    "methods/swav.py": {
        "gradient-through-codes": (
            "codes_btk = self._codes(scores_bvk.detach())",
            "codes_btk = (scores_bvk[:, :CODED] / 0.05).softmax(-1)",
            f"{_SWAV}::test_no_gradient_through_codes_and_each_view_predicts_the_others",
        ),
        "queue-counted-once-a-rank": (
            "queue.keys.tensor_split(collectives.world_size())[collectives.rank()]",
            "queue.keys",
            f"{_RANKS}[3-swav-0-small]",
        ),
        "queue-used-before-it-is-full": (
            "self.num_queued < self.config.queue_size",
            "self.num_queued < 1",
            f"{_SWAV}::test_loss_with_a_full_queue_equals_float64_transcription",
        ),
    },
    "methods/dino.py": {
        "centre-of-each-rank": (
            "collectives.mean(full(targets.logits_btk).mean(dim=(0, 1)))",
            "full(targets.logits_btk).mean(dim=(0, 1))",
            f"{_RANKS}[2-dino-0-small]",
        ),
        "not-centred": (
            "(g_btk - self.center)",
            "(g_btk - 0 * self.center)",
            f"{_DINO}::test_loss_equals_float64_transcription",
        ),
        "centre-before-the-loss": (
            "        loss = cross_entropies",
            "        self.center.lerp_(g_btk.mean(dim=(0, 1)), 0.1)\n"
            "        p_btk = ((g_btk - self.center) / teacher_temperature).softmax(dim=-1)\n"
            "        loss = cross_entropies",
            f"{_DINO}::test_steps_equal_the_published_order",
        ),
        "teacher-sees-small-crops": (
            "batch.views[: batch.num_large]",
            "batch.views",
            f"{_DINO}::test_the_teacher_sees_full_size_views_only",
        ),
        "gradient-into-the-teacher": (
            "full(targets.logits_btk.detach())",
            "full(targets.logits_btk)",
            f"{_DINO}::test_gradient_by_finite_differences_and_none_into_the_teacher",
        ),
    },
    "methods/moco_v3.py": {
        "labels-without-the-rank": (
            " + len(own) * collectives.rank()",
            "",
            f"{_RANKS}[2-mocov3-0-small]",
        ),
        "without-2-tau": (
            "directions * 2 * temperature * loss",
            "directions * loss",
            f"{_MOCO_V3}::test_closed_forms",
        ),
    },
    "methods/parts/kmeans.py": {
        "sums-of-each-rank": (
            "return collectives.sum(sums), collectives.sum(counts)",
            "return sums, counts",
            f"{PARTS}/test_kmeans.py::test_what_is_found_does_not_depend_on_the_ranks",
        ),
        "no-last-assignment": (
            "return Clusters(centroids, _assign(rows, centroids, spherical))",
            "return Clusters(centroids, labels)",
            f"{PARTS}/test_kmeans.py::test_labels_equal_plain_loops_from_the_same_start",
        ),
    },
    "methods/deep_cluster.py": {
        "large-clusters-weigh-more": (
            "torch.where(there, 1 / sizes_b, 0)",
            "torch.where(there, sizes_b / sizes_b, 0)",
            f"{_V1}::test_over_an_epoch_each_cluster_weighs_the_same",
        ),
        "weights-of-each-rank": (
            "total = collectives.mean(weights_b.sum())",
            "total = weights_b.sum()",
            f"{_RANKS}[3-deep_cluster-0-small]",
        ),
    },
    "methods/deep_cluster_v2.py": {
        "bank-of-each-rank": (
            "self._write(ids, z_btd.transpose(0, 1))",
            "self._write(batch.ids, z_btd[: len(batch.ids)].transpose(0, 1))",
            "tests/methods/test_rank_invariance.py::"
            "test_state_is_the_same_on_every_rank_and_that_of_one_rank[2-deep_cluster_v2-0-small]",
        ),
    },
    "platform/train/engine.py": {
        "clipping-by-part-of-a-parameter": (
            "            dist.all_reduce(squares)\n        factors",
            "            pass\n        factors",
            f"{_TOUCHES}::test_each_parameter_is_clipped_by_itself_at_every_stage",
        ),
        "new-weights-lost": (
            "            partition.write_master()\n            for slot in self._slots:\n                if slot",
            "            for slot in self._slots:\n                if slot",
            f"{_TOUCHES}::test_weights_that_were_set_anew_stay_and_their_moments_are_zero_at_every_stage",
        ),
        "moments-of-old-weights": (
            "                    partition.forget(self._optimizer.state, slot, chosen)\n",
            "                    pass\n",
            f"{_TOUCHES}::test_weights_that_were_set_anew_stay_and_their_moments_are_zero_at_every_stage",
        ),
    },
}
