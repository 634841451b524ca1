"""How the rank loop puts the pieces together."""

from .names import BYOL, COMMITS, ENDS, LOOP, MICRO, MOCO, RECORDS, SIMCLR, WIRING, Faults

_AFTER = "self.method.after_step(result.out, result.targets, result.batch)"
_TAKEN = (
    "        taken = result is not None and self.engine.step()\n"
    "        self._report_alike(share)  # waits for the device, like the step\n"
)
_UPDATE = f"        if result is not None and taken:\n            self.norms.update()\n            {_AFTER}\n"
_DRAWS = "rng.mix(DRAWS, self.job.plan.seed, self.step, first)"
_PLACE = "rng.permutation(span, SHUFFLE, self.job.plan.seed, step, (start + offset) // span)"

_EPOCH = "epoch=step // self.job.plan.batches_per_epoch,"
_MADE = "pictures.part(rows), ids, self.epoch, parcel)"

_LOOP: Faults = {
    "ema-per-micro-batch": (_AFTER, f"[{_AFTER} for _ in range(self.share // self.layout.micro)]", MOCO),
    "ema-before-the-optimiser": (
        _TAKEN + _UPDATE,
        f"        if result is not None:\n            {_AFTER}\n{_TAKEN}{_UPDATE.replace(_AFTER, 'pass')}",
        BYOL,
    ),
    "ema-at-progress-0": ("progress=step / self.job.steps,", "progress=0.0,", BYOL),
    "ema-at-the-next-progress": (
        "progress=step / self.job.steps,",
        "progress=(step + 1) / self.job.steps,",
        BYOL,
    ),
    "no-after-step": (_AFTER, "pass", MOCO),
    "running-statistics-never": (
        "            self.norms.update()\n",
        "            self.norms.discard()\n",
        MOCO,
    ),
    "running-statistics-though-skipped": (
        "            self.norms.discard()\n",
        "            self.norms.update()\n",
        MOCO,
    ),
    "progress-a-step-ahead": (
        "return self.step / self.job.steps",
        "return (self.step + 1) / self.job.steps",
        BYOL,
    ),
    "progress-within-the-epoch": (
        "return self.step / self.job.steps",
        "return self.step % self.job.plan.batches_per_epoch / self.job.steps",
        BYOL,
    ),
    "lr-of-the-step-before": (
        "self.engine.set_progress(self.progress)",
        "self.engine.set_progress(max(0, step - 1) / job.steps)",
        SIMCLR,
    ),
    "shuffle-ignores-the-rank": (
        "self._shuffle(step, self.rank * self.share + start)",
        "self._shuffle(step, start)",
        MOCO,
    ),
    "shuffle-ignores-the-seed": (_PLACE, _PLACE.replace("self.job.plan.seed", "0"), MOCO),
    "shuffle-ignores-the-step": (_PLACE, _PLACE.replace("step,", "0,"), MOCO),
    "shuffle-ignores-the-span": (_PLACE, _PLACE.replace("start + offset", "start"), MOCO),
    "shuffle-counts-samples": (_PLACE, _PLACE.replace("(start + offset) // span", "start + offset"), MOCO),
    "shuffle-is-the-dropout-stream": (_PLACE, _PLACE.replace("SHUFFLE", "DRAWS"), MOCO),
    "shuffle-moves-whole-spans": ("offset + rng.permutation", "0 * offset + rng.permutation", MOCO),
    "views-of-the-step": (_EPOCH, "epoch=step,", SIMCLR),
    "views-of-the-next-epoch": (_EPOCH, f"{_EPOCH[:-1]} + 1,", SIMCLR),
    "views-ignore-the-seed": ("            seed=job.plan.seed,\n", "            seed=0,\n", SIMCLR),
    "views-normalised-by-std-alone": (
        "mean=job.data.mean,\n            std=job.data.std,\n            dtype",
        "mean=job.data.std,\n            std=job.data.std,\n            dtype",
        SIMCLR,
    ),
    "dropout-without-step": (_DRAWS, _DRAWS.replace("self.step", "0"), MOCO),
    "dropout-without-place": (_DRAWS, _DRAWS.replace("first", "0"), MOCO),
    "dropout-without-rank": ("first = self.rank * self.share + start", "first = start", MOCO),
    "dropout-without-seed": (_DRAWS, _DRAWS.replace("self.job.plan.seed", "0"), MOCO),
    "dropout-all-equal": (_DRAWS, "rng.mix(DRAWS)", MOCO),
    "dropout-from-the-shuffle": (_DRAWS, _DRAWS.replace("DRAWS", "SHUFFLE"), MOCO),
    "dropout-one-seed-a-share": (
        "seeds=[self._draws(start) for",
        "seeds=[self._draws(0) for",
        MOCO,
    ),
    "no-pass-before-the-first-epoch": (
        "if self.looks_ahead and self.step % per_epoch == 0:",
        "if self.looks_ahead and self.step and self.step % per_epoch == 0:",
        f"{LOOP}::test_a_method_sees_the_training_samples_once_before_each_epoch[2]",
    ),
    "a-pass-at-every-resume": (
        "if self.looks_ahead and self.step % per_epoch == 0:",
        "if self.looks_ahead and (self.step % per_epoch == 0 or self.commit is not None):",
        f"{LOOP}::test_a_method_sees_the_training_samples_once_before_each_epoch[3]",
    ),
    "counts-not-restored": (
        '            self.counts = dict(commit.manifest["counts"])\n',
        "",
        RECORDS + "[mocov2]",
    ),
    "state-not-restored": ("            self.engine.load_state(commits.load_state(commit))\n", "", MOCO),
    "skipped-step-enqueues": (
        _TAKEN,
        _TAKEN.replace("result is not None and self.engine.step()", "result is not None")
        + "        taken and self.engine.step()\n",
        MOCO,
    ),
    "nan-elsewhere-unnoticed": ("dist.all_reduce(flags)", "dist.all_reduce(flags[1:])", MOCO),
    "nan-never-noticed": ("return agreed[0] == 0", "return True", MOCO),
    "loss-summed-over-ranks": ("total / num_finite", "total", RECORDS + "[mocov2]"),
    "loss-of-the-others-halved": (
        "num_finite = self.world_size - not_finite",
        "num_finite = self.world_size",
        RECORDS + "[mocov2]",
    ),
    "no-loss-is-none": ("if num_finite else math.nan", "if num_finite else 0.0", RECORDS + "[byol]"),
    "loss-of-this-rank": ("dist.all_reduce(flags)", "dist.all_reduce(flags[:3])", RECORDS + "[mocov2]"),
    "bad-of-this-rank": ("[not_finite, stops, num_bad,", "[not_finite, stops, bad,", RECORDS + "[mocov2]"),
    "bad-in-epoch-never-reset": ('self.counts["bad_in_epoch"] = 0\n', "pass\n", MOCO),
    "bad-at-the-bound-fails": ("> job.data.max_bad *", ">= job.data.max_bad *", MOCO),
    "bad-counted-over-the-run": ('self.counts["bad_in_epoch"] > job', 'self.counts["bad"] > job', MOCO),
    "bad-not-counted": ("        return len(rows)\n", "        return 0\n", f"{ENDS}[unreadable]"),
    "skips-counted-for-ever": (
        "self.skipped_in_a_row = 0 if taken else self.skipped_in_a_row + 1",
        "self.skipped_in_a_row += not taken",
        f"{ENDS}[not finite]",
    ),
    "one-skip-too-many": (">= MAX_SKIPPED_IN_A_ROW", "> MAX_SKIPPED_IN_A_ROW", f"{ENDS}[not finite]"),
    "skipped-counts-as-update": ('("updates", taken)', '("updates", True)', RECORDS + "[mocov2]"),
    "stop-without-commit": ("if stop or end_of_epoch or", "if end_of_epoch or", COMMITS),
    "stop-goes-on": (
        '            if stop:\n                return Outcome("interrupted")\n',
        "",
        f"{WIRING}::test_all_ranks_see_the_stop[mocov2]",
    ),
    "stop-of-this-rank": ("[not_finite, stops, num_bad,", "[not_finite, stop, num_bad,", MOCO),
    "monitor-before-the-last-commit": (
        "if end_of_epoch and not stop:",
        "if end_of_epoch:",
        f"{LOOP}::test_a_stop_at_the_end_of_an_epoch_commits_first_and_evaluates_later[2]",
    ),
    "monitor-put-off-for-ever": (
        "monitor_due=end_of_epoch and stop",
        "monitor_due=False",
        f"{LOOP}::test_a_stop_at_the_end_of_an_epoch_commits_first_and_evaluates_later[2]",
    ),
    "monitor-put-off-twice": (
        "score_name=self.score_name, monitor_due=False",
        "score_name=self.score_name, monitor_due=True",
        f"{LOOP}::test_a_stop_at_the_end_of_an_epoch_commits_first_and_evaluates_later[2]",
    ),
    "no-commit-at-the-epochs-end": ("if stop or end_of_epoch or", "if stop or", COMMITS),
    "commit-a-step-early": (
        "self.step % job.commit.every_steps",
        "(self.step + 1) % job.commit.every_steps",
        COMMITS,
    ),
    "commit-names-the-step-before": ('"step": self.step,\n', '"step": self.step - 1,\n', COMMITS),
    "metrics-a-step-late": (
        "(step + 1) % job.metrics_every",
        "step % job.metrics_every",
        f"{ENDS}[last step]",
    ),
    "no-metrics-of-the-first-step": (" == 0 or step == 0 or", " == 0 or", f"{ENDS}[last step]"),
    "no-metrics-of-the-last-step": (" or step + 1 == job.steps\n", "\n", f"{ENDS}[last step]"),
    "metrics-name-the-next-step": (
        "self.recorder.metrics(self.step,",
        "self.recorder.metrics(self.step + 1,",
        RECORDS + "[byol]",
    ),
    "metrics-of-this-rank": (
        "collectives.mean(values)",
        "values",
        RECORDS + "[mocov2]",
    ),
    "lr-without-the-schedule": ('"lr": self.engine.lr,', '"lr": self.engine._lr,', RECORDS + "[byol]"),
    "grad-norms-swapped": (
        "float(grad_norms[0]), float(grad_norms[1])",
        "float(grad_norms[1]), float(grad_norms[0])",
        RECORDS + "[byol]",
    ),
    "method-in-eval-mode": ("job.build().train()", "job.build().eval()", MOCO),
    "one-norm-group-a-share": (
        "norms.install(self.method, self.layout.norm_group,",
        "norms.install(self.method, self.share,",
        MOCO,
    ),
}

_MICRO: Faults = {
    "view-ids-are-positions": (_MADE, _MADE.replace("ids", "self.share.positions[rows]"), SIMCLR),
    "view-ids-of-32-bits": (_MADE, _MADE.replace("ids", "ids % 2**32"), SIMCLR),
    "batch-ids-of-32-bits": (
        "ids=torch.from_numpy(ids)",
        "ids=torch.from_numpy(ids % 2**32)",
        RECORDS + "[simclr]",
    ),
    "views-of-epoch-0": (_MADE, _MADE.replace("self.epoch", "0"), SIMCLR),
    "every-micro-batch-is-the-first": ("start = number * self.size", "start = 0", SIMCLR),
    "shuffle-does-nothing": ("shuffle=self.shuffle(start)", "shuffle=None", MOCO),
    "fields-of-the-first-micro-batch": (
        "_tensor(field[rows])",
        "_tensor(field[: self.size])",
        f"{MICRO}::test_micro_batches_are_the_share_in_pieces[small]",
    ),
    "geometry-of-the-first-micro-batch": (
        "pictures.geometry[rows]",
        "pictures.geometry[: self.size]",
        f"{MICRO}::test_micro_batches_are_the_share_in_pieces[small]",
    ),
    "a-copy-that-waits": (
        "        parcel.send()\n",
        "        parcel.send()\n"
        "        (parcel.device.type == 'cpu') or torch.ones((), device=parcel.device).item()\n",
        f"{MICRO}::test_a_micro_batch_is_one_copy_that_nothing_waits_for",
    ),
    "shuffle-of-the-first-micro-batch": ("shuffle=self.shuffle(start)", "shuffle=self.shuffle(0)", MOCO),
}

FAULTS = {
    "platform/train/micro.py": _MICRO,
    "platform/train/loop.py": _LOOP,
}
