"""What outlives a step: commits, teachers, queues."""

from .names import COMMIT, MOCO, MONITOR, PARTS, RECORD, SIMCLR, Faults

_PRUNES = f"{COMMIT}::test_prune_keeps_newest_and_best"

_COMMIT: Faults = {
    "best-is-the-worst": ("best = max(scores,", "best = min(scores,", _PRUNES),
    "one-commit-too-few": ("whole[-keep:]", "whole[-keep + 1 :]", _PRUNES),
    "attempt-that-lost-commits": (
        "if not owned():",
        "if False:",
        f"{COMMIT}::test_an_attempt_that_lost_the_run_cannot_commit",
    ),
    "nan-is-best": (
        "score if score is not None and math.isfinite(score) else None",
        "score",
        f"{COMMIT}::test_prune_keeps_no_commit_for_a_score_that_is_not_finite",
    ),
    "damaged-commits-are-kept-for-whole-ones": (
        "if (commit := read(path))]",
        'if (commit := Commit(path, {"step": 0}))]',
        f"{COMMIT}::test_a_damaged_commit_is_replaced_when_the_run_gets_there_and_else_deleted",
    ),
    "damaged-bytes-are-loaded": (
        " and not is_intact(commit):",
        " and False:",
        f"{COMMIT}::test_a_commit_whose_bytes_have_changed_is_set_aside_before_it_is_loaded",
    ),
    "drafts-of-others-go": (
        "if draft.name.endswith(f\".{made.manifest['attempt']}\") or _idle_s(draft) > DRAFT_LIFE_S:",
        "if True:",
        f"{COMMIT}::test_prune_leaves_drafts_of_other_attempts_until_they_are_old",
    ),
    "oldest-is-newest": (
        'sorted(commits.glob("step-*"), reverse=True)',
        'sorted(commits.glob("step-*"))',
        f"{COMMIT}::test_newest_passes_over_commits_that_are_not_whole",
    ),
}

_RECORD: Faults = {
    "record-of-the-commits-step-stays": (
        'record["step"] < start_step and',
        'record["step"] <= start_step and',
        "tests/platform/runs/test_records.py::test_cut_drops_later_steps_and_a_half_line",
    ),
    "ranks-may-differ": (
        "for other in everyone}) > 1]",
        "for other in everyone}) > 2]",
        f"{RECORD}::test_ranks_commit_what_they_hold_alike_a_bank_in_bf16_too_and_nothing_else",
    ),
    "who-lost-the-run-prunes": (
        "            if owns(job.run, job.attempt):\n",
        "            if True:\n",
        f"{RECORD}::test_who_has_lost_the_run_while_committing_does_not_prune",
    ),
}

_MODE = f"{MONITOR}::test_an_encoder_is_scored_in_eval_mode_and_goes_on_in_its_own[True]"

_MONITOR: Faults = {
    "monitor-in-training-mode": ("        encoder.eval()\n", "", _MODE),
    "monitor-leaves-eval-mode": ("        encoder.train(was_training)\n", "", _MODE),
    "monitor-of-this-rank": (
        "[collectives.rank() :: collectives.world_size()]",
        "[:: collectives.world_size()]",
        f"{MONITOR}::test_scores_are_the_same_on_1_and_2_ranks",
    ),
    "monitor-is-its-own-neighbour": (
        "exclude_self=True",
        "exclude_self=False",
        f"{MONITOR}::test_classes_that_alternate_give_an_encoder_that_knows_nothing_no_score",
    ),
}

_QUEUE: Faults = {
    "queue-pointer-stands": (
        "        self.pointer.add_(len(rows)).remainder_(size)\n",
        "",
        f"{PARTS}/test_queue.py",
    ),
    "queue-pointer-runs-out": (".remainder_(size)", "", f"{PARTS}/test_queue.py"),
    "oldest-rows-survive": ("rows[-size:]", "rows[:size]", f"{PARTS}/test_queue.py"),
}

_EMA: Faults = {
    "momentum-turned": ("new, 1 - momentum)", "new, momentum)", f"{PARTS}/test_ema.py"),
    "momentum-falls": (
        "(1 + math.cos(math.pi * progress))",
        "(1 - math.cos(math.pi * progress))",
        f"{PARTS}/test_ema.py",
    ),
    "teacher-learns": (".float().requires_grad_(False)", ".float()", f"{PARTS}/test_ema.py"),
}

_MOCO: Faults = {
    "keys-of-this-rank": ("collectives.gather(targets.k_bd)", "targets.k_bd", MOCO),
    "keys-stay-shuffled": ("k = k[order.argsort()]", "k = k[order]", MOCO),
    "enqueued-before-the-loss": (
        "negative = q @ self.queue.keys.T",
        "self.queue.enqueue(k)\n        negative = q @ self.queue.keys.T",
        MOCO,
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

FAULTS = {
    "platform/runs/commit.py": _COMMIT,
    "platform/runs/monitor.py": _MONITOR,
    "platform/train/record.py": _RECORD,
    "methods/parts/queue.py": _QUEUE,
    "methods/parts/ema.py": _EMA,
    "methods/moco_v2.py": _MOCO,
    "methods/collectives.py": _COLLECTIVES,
}
