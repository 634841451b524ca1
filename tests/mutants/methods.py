"""Methods, a table each."""

from .names import MOCO, Faults

_MOCO: Faults = {
    "keys-of-this-rank": ("collectives.gather(targets.k_bd)", "targets.k_bd", MOCO),
    "keys-stay-shuffled": ("k = k[order.argsort()]", "k = k[order]", MOCO),
    "enqueued-before-the-loss": (
        "loss, accuracy = against(",
        "queue.enqueue(k)\n        loss, accuracy = against(",
        MOCO,
    ),
}

_SYMMETRIC = "tests/methods/test_moco_v2_symmetric.py"

_MOCO_V2: Faults = {
    "both-directions-against-one-queue": (
        "targets.other_bd, self.other_queue, batch)",
        "targets.other_bd, self.queue, batch)",
        f"{_SYMMETRIC}::test_loss_equals_float64_transcription",
    ),
    "the-other-queue-of-this-rank": (
        "collectives.gather(targets.other_bd)",
        "targets.other_bd",
        "tests/methods/test_rank_invariance.py::"
        "test_state_is_the_same_on_every_rank_and_that_of_one_rank[2-mocov2-symmetric-0-small]",
    ),
    "a-view-s-query-finds-its-own-key": (
        "_without(out.q_bvd, 0)",
        "_without(out.q_bvd, 1)",
        f"{_SYMMETRIC}::test_loss_equals_float64_transcription",
    ),
    "sum-of-both-directions": (
        "(a + b) / 2",
        "a + b",
        f"{_SYMMETRIC}::test_loss_equals_float64_transcription",
    ),
}

_SIMCLR: Faults = {
    "keys-learn-nothing": (
        "collectives.gather(z_bvd)",
        "collectives.gather(z_bvd.detach())",
        "tests/methods/test_simclr.py::test_gradient_by_finite_differences",
    ),
    "simclr-itself-among-the-candidates": (
        "others = torch.cat([own[:, :k], own[:, k + 1 :]], dim=1)",
        "others = torch.cat([own[:, 1:k], own[:, k + 1 :]], dim=1)",
        "tests/methods/test_simclr.py::test_closed_forms",
    ),
    "own-views-are-negatives": (
        "others = torch.cat([own[:, :k], own[:, k + 1 :]], dim=1)",
        "others = own[:, :1]",
        "tests/methods/test_simclr.py::test_loss_of_many_views_equals_float64_transcription[5-6]",
    ),
    "views-of-rank-0": (
        " + b * collectives.rank()\n",
        "\n",
        "tests/methods/test_rank_invariance.py::test_losses_and_gradients_are_those_of_one_rank[2-simclr-3-small]",
    ),
}

_BYOL: Faults = {
    "byol-gradient-into-the-teacher": (
        "full(targets.z_btd.detach())",
        "full(targets.z_btd)",
        "tests/methods/test_byol.py::test_gradient_reaches_the_student_only",
    ),
    "byol-prediction-stands-still": (
        "full(out.p_bvd)",
        "full(out.p_bvd.detach())",
        "tests/methods/test_byol.py::test_gradient_reaches_the_student_only",
    ),
    "small-crops-to-the-teacher": (
        "batch.views[: batch.num_large]",
        "batch.views",
        "tests/methods/test_byol.py::test_teacher_sees_full_size_views_only",
    ),
    "sum-over-many-views": (
        "if p_bvd.shape[1] == 2 else",
        "if p_bvd.shape[1] else",
        "tests/methods/test_byol.py::test_loss_of_many_views_equals_float64_transcription[2-5]",
    ),
}

_METHODS = "tests/methods"

_SIMSIAM: Faults = {
    "gradient-into-what-is-predicted": (
        "return z.detach() if self.config.stop_gradient else z",
        "return z",
        f"{_METHODS}/test_simsiam.py::test_no_gradient_flows_into_what_is_predicted",
    ),
    "prediction-stands-still": (
        "p, z = pz.chunk(2, dim=-1)",
        "z, p = pz.chunk(2, dim=-1)",
        f"{_METHODS}/test_simsiam.py::test_step_equals_algorithm_1",
    ),
}

_VICREG: Faults = {
    "biased-covariance": (
        "/ (B - 1)",
        "/ B",
        f"{_METHODS}/test_vicreg.py::test_loss_equals_float64_transcription[code-4]",
    ),
    "covariance-of-this-rank": (
        "c_vdd = collectives.sum(z_vbd.mT @ z_vbd)",
        "c_vdd = (z_vbd.mT @ z_vbd)",
        f"{_METHODS}/test_rank_invariance.py::test_losses_and_gradients_are_those_of_one_rank[2-vicreg-0-small]",
    ),
    "hinge-on-the-variance": (
        "std = (on_diag + EPSILON).sqrt()",
        "std = on_diag + EPSILON",
        f"{_METHODS}/test_vicreg.py::test_closed_forms",
    ),
}

_BARLOW: Faults = {
    "gradient-into-the-stopped-branch": (
        "return z.detach() if self.config.stop_gradient else z",
        "return z",
        f"{_METHODS}/test_barlow_twins.py::test_stopped_branch_has_no_gradient",
    ),
    "predicted-one-way-only": (
        "(unordered if symmetric else directed)",
        "(unordered if symmetric else unordered)",
        f"{_METHODS}/test_barlow_twins.py::test_step_of_every_form_equals_its_equation",
    ),
    "correlation-of-this-rank": (
        "collectives.sum(self._sg(z[t]).T @ p[s]) / B",
        "self._sg(z[t]).T @ p[s] / len(out.z_bvd)",
        f"{_METHODS}/test_rank_invariance.py::"
        "test_losses_and_gradients_are_those_of_one_rank[2-barlow_twins-0-small]",
    ),
    "unbiased-variance": (
        "collectives.sum(z_bvd.square().sum(dim=0)) / B",
        "collectives.sum(z_bvd.square().sum(dim=0)) / (B - 1)",
        f"{_METHODS}/test_barlow_twins.py::test_loss_equals_float64_transcription[4]",
    ),
    "standardised-along-features": (
        "collectives.sum(z_bvd.sum(dim=0)) / B",
        "z_bvd.mean(dim=-1, keepdim=True)",
        f"{_METHODS}/test_barlow_twins.py::test_loss_is_invariant_to_scale_and_offset_of_each_dimension",
    ),
    "balanced-by-the-sum": (
        "d * off_diag.square().mean()",
        "off_diag.square().mean()",
        f"{_METHODS}/test_barlow_twins.py::test_mean_balanced_form_is_d_times_both_means[5]",
    ),
}

_INVA_SPREAD: Faults = {
    "itself-among-the-candidates": (
        'logits = logits.scatter(1, itself[:, None], float("-inf"))  # k != i',
        "pass",
        f"{_METHODS}/test_inva_spread.py::test_closed_forms",
    ),
    "positive-spreads-too": (
        ".scatter(1, own[:, None], 0.0)",
        "",
        f"{_METHODS}/test_inva_spread.py::test_loss_equals_float64_transcription[4]",
    ),
    "keys-learn": (
        "u_vbd.detach().transpose(0, 1)",
        "u_vbd.transpose(0, 1)",
        f"{_METHODS}/test_inva_spread.py::test_gradient_of_the_code_s_form_flows_through_anchors_only",
    ),
}

_INST_DISC: Faults = {
    "normaliser-of-each-batch": (
        "torch.where(self.normaliser > 0, self.normaliser, self._estimate(logits))",
        "self._estimate(logits)",
        f"{_METHODS}/test_inst_disc.py::test_closed_forms",
    ),
    "normaliser-of-this-rank": (
        "collectives.mean(log_mean.exp())",
        "log_mean.exp()",
        f"{_METHODS}/test_rank_invariance.py::"
        "test_losses_and_gradients_are_those_of_one_rank[2-inst_disc-0-small]",
    ),
    "rows-by-place": (
        "own = batch.ids.repeat_interleave(v)",
        "own = torch.arange(len(batch.ids)).repeat_interleave(v)",
        f"{_METHODS}/test_inst_disc.py::test_positives_are_the_rows_of_the_samples_ids_wherever_they_stand",
    ),
    "written-before-the-loss": (
        "        rows = self.bank.rows[own]\n",
        "        self.bank.update(batch.ids, u[::v], 0.5)\n        rows = self.bank.rows[own]\n",
        f"{_METHODS}/test_inst_disc.py::"
        "test_rows_are_scored_before_they_are_written_and_only_of_the_first_view",
    ),
}

_DENSE_CL: Faults = {
    "matched-by-projections": (
        "c_bs = correspondence(full(out.f_bsc), full(targets.f_bsc))",
        "c_bs = correspondence(full(out.r_bsd), full(targets.r_bsd))",
        f"{_METHODS}/test_dense_cl.py::test_matching_is_by_features_and_not_by_projections",
    ),
    "matched-the-other-way": (
        ".mT).argmax(dim=2)",
        ".mT).argmax(dim=1)",
        f"{_METHODS}/test_dense_cl.py::test_a_cell_is_found_again_wherever_it_went",
    ),
    "dense-rows-are-means-of-unit-keys": (
        "F.normalize(r_bsd.mean(dim=1), dim=-1)",
        "F.normalize(F.normalize(r_bsd, dim=-1).mean(dim=1), dim=-1)",
        f"{_METHODS}/test_dense_cl.py::"
        "test_queues_take_the_keys_after_the_loss_and_the_dense_one_a_mean_per_image",
    ),
}

_CMC: Faults = {
    "rows-of-the-own-bank": (
        "bank, own = self.banks[c], batch.ids",
        "bank, own = self.banks[a], batch.ids",
        f"{_METHODS}/test_cmc.py::test_loss_equals_float64_transcription[2-full-nce]",
    ),
    "absent-parts-are-written": (
        "momentum, out.present_bvm[:, 0, c] > 0)",
        "momentum)",
        f"{_METHODS}/test_cmc.py::test_images_without_a_part_have_no_say_in_it_and_leave_its_row_alone",
    ),
    "missing-parts-count": (
        "(present[:, :, a] * present[:, :, c]).flatten()",
        "present[:, :, c].flatten()",
        f"{_METHODS}/test_cmc.py::test_images_without_a_part_have_no_say_in_it_and_leave_its_row_alone",
    ),
}

_INFOMIN: Faults = {
    "jigsaw-weighs-the-views": (
        "weight * jigsaw.loss + (1 - weight) * views.loss",
        "(1 - weight) * jigsaw.loss + weight * views.loss",
        f"{_METHODS}/test_infomin.py::test_loss_is_both_of_moco_s_by_their_weight[0.2]",
    ),
}

_ADCO: Faults = {
    "negatives-descend": (
        "self.config.adversary_decay * self.negatives - gradient",
        "self.config.adversary_decay * self.negatives + gradient",
        f"{_METHODS}/test_adco.py::test_negatives_climb_the_loss_that_the_student_descends",
    ),
    "negatives-grow-along-themselves": (
        " - along[:, None] * w)",
        ")",
        f"{_METHODS}/test_adco.py::test_negatives_gradient_is_that_of_autograd[False]",
    ),
    "negatives-of-this-rank": (
        "collectives.mean(total / (temperature * lengths))",
        "total / (temperature * lengths)",
        f"{_METHODS}/test_rank_invariance.py::"
        "test_state_is_the_same_on_every_rank_and_that_of_one_rank[2-adco-0-small]",
    ),
}

_CONTRASTIVE_CLUSTERING: Faults = {
    "columns-of-this-rank": (
        "products = collectives.sum(columns.T @ columns)",
        "products = columns.T @ columns",
        f"{_METHODS}/test_rank_invariance.py::"
        "test_losses_and_gradients_are_those_of_one_rank[2-contrastive_clustering-0-small]",
    ),
    "column-itself-among-the-candidates": (
        '.masked_fill(itself, float("-inf"))',
        "",
        f"{_METHODS}/test_contrastive_clustering.py::test_closed_forms_of_the_cluster_terms",
    ),
    "log-of-nothing": (
        "p_vm.clamp(min=1e-12).log()",
        "p_vm.log()",
        f"{_METHODS}/test_contrastive_clustering.py::test_closed_forms_of_the_cluster_terms",
    ),
}

_SIMCLR_V2: Faults = {
    "memory-before-the-loss": (
        "        temperature = self.temperature.at(batch.progress, self.data.epochs)\n        return nt_xent(",
        "        temperature = self.temperature.at(batch.progress, self.data.epochs)\n"
        "        self.after_step(out, targets, batch)\n        return nt_xent(",
        f"{_METHODS}/test_simclr_v2.py::"
        "test_memory_holds_what_the_moving_average_made_of_full_size_views_after_the_loss",
    ),
}

_CLIP: Faults = {
    "texts-as-keys-learn-nothing": (
        "z_Bvd, t_Bd = collectives.gather(z_bvd), collectives.gather(t_bd)",
        "z_Bvd, t_Bd = collectives.gather(z_bvd), collectives.gather(t_bd).detach()",
        f"{_METHODS}/test_clip.py::test_gradient_by_finite_differences",
    ),
    "own-texts-of-rank-0": (
        "+ len(t_bd) * collectives.rank()",
        "",
        f"{_METHODS}/test_rank_invariance.py::test_losses_and_gradients_are_those_of_one_rank[2-clip-0-small]",
    ),
    "small-crops-found-by-texts": (
        "z_Bvd[:, :num_large].unbind(dim=1)",
        "z_Bvd.unbind(dim=1)",
        f"{_METHODS}/test_clip.py::test_loss_equals_float64_transcription[2-5]",
    ),
    "cut-without-gradient": (
        "cut = t + (t.clamp(0, LARGEST) - t).detach()",
        "cut = t.clamp(0, LARGEST)",
        f"{_METHODS}/test_clip.py::test_scale_starts_at_the_published_value_is_cut_and_keeps_its_gradient",
    ),
    "scale-that-nobody-learns": (
        "cut.exp().expand(rows)",
        "cut.exp().expand(rows).detach()",
        "tests/methods/test_catalog.py::test_every_trainable_parameter_acts_inside_forward_only[clip]",
    ),
}

_SHARED = f"{_METHODS}/test_shared_transformer.py"

_SHARED_TRANSFORMER: Faults = {
    "shared-parts-are-copied": (
        "part = dict(block.named_children()) | dict(own.items())",
        "part = dict(copy.deepcopy(block).named_children()) | dict(own.items())",
        f"{_SHARED}::test_the_gradient_of_a_shared_weight_is_the_sum_of_both_kinds[all]",
    ),
    "shared-text-looks-ahead": (
        "is_causal=True",
        "is_causal=False",
        f"{_SHARED}::test_all_shared_reads_a_text_as_the_blocks_of_the_image_would_with_a_causal_mask",
    ),
    "last-norm-always-shared": (
        'None if "ln" in shared else',
        "None if shared else",
        f"{_SHARED}::test_shared_parameters_count_once_and_stand_once_in_the_state[attention+ffn-80]",
    ),
}

FAULTS = {
    "methods/moco_v1.py": _MOCO,
    "methods/moco_v2.py": _MOCO_V2,
    "methods/simclr.py": _SIMCLR,
    "methods/byol.py": _BYOL,
    "methods/simsiam.py": _SIMSIAM,
    "methods/vicreg.py": _VICREG,
    "methods/barlow_twins.py": _BARLOW,
    "methods/inva_spread.py": _INVA_SPREAD,
    "methods/inst_disc.py": _INST_DISC,
    "methods/dense_cl.py": _DENSE_CL,
    "methods/cmc.py": _CMC,
    "methods/infomin.py": _INFOMIN,
    "methods/adco.py": _ADCO,
    "methods/contrastive_clustering.py": _CONTRASTIVE_CLUSTERING,
    "methods/simclr_v2.py": _SIMCLR_V2,
    "methods/clip.py": _CLIP,
    "methods/shared_transformer.py": _SHARED_TRANSFORMER,
}
