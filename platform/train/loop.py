"""The rank loop: one global batch after another, from a commit to the next. Knows nothing of Ray.

Every rank runs it; ranks meet in one small all-reduce before each backward (loss finite, stop wanted,
unreadable samples), in the method's collectives, in the gradients, at metrics and at commits.
"""

import logging
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from vergence.methods import collectives
from vergence.methods.method import Method, ReadsText
from vergence.platform.augment import rng
from vergence.platform.augment.views import Views
from vergence.platform.data.captions import captions_of
from vergence.platform.data.index import Index
from vergence.platform.data.read import Reader
from vergence.platform.data.remote import BYPASSED
from vergence.platform.data.share import Share
from vergence.platform.evaluate.monitor import Monitor, remarks
from vergence.platform.evaluate.sweep import Sweep
from vergence.platform.evaluate.zero_shot import ZeroShot
from vergence.platform.runs import commit as commits
from vergence.platform.runs.outcome import Outcome
from vergence.platform.train import norms
from vergence.platform.train.ahead import ahead
from vergence.platform.train.engine import Engine
from vergence.platform.train.exact import Result, accumulate
from vergence.platform.train.job import Job
from vergence.platform.train.layout import layout
from vergence.platform.train.micro import Micros
from vergence.platform.train.record import Recorder, committed, embedding_metrics

log = logging.getLogger(__name__)

MAX_SKIPPED_IN_A_ROW = 10
# streams of random words: for shuffling BN, for dropout and its like, for what is done before an epoch
SHUFFLE, DRAWS, SWEEP = 0x5B, 0xD2, 0x5E


class RankLoop:
    """State of one rank between two steps."""

    def __init__(
        self,
        job: Job,
        commit: commits.Commit | None = None,
        wants_stop: Callable[[], bool] = lambda: False,
        entered_s: float | None = None,
    ) -> None:
        """The run as it stands in `commit`, the same one on all ranks; at step 0 without one.

        wants_stop: asked at every step; one rank that says yes makes all of them commit and return.
        entered_s: Unix time at which this rank began, for the story of the start.
        """
        self.job, self.commit, self.wants_stop = job, commit, wants_stop
        self.step = commit.step if commit else 0
        self.rank, self.world_size = collectives.rank(), collectives.world_size()
        self.layout = layout(job.layout, self.world_size, job.machine)
        self.share = self.layout.share
        self.device = torch.device(job.device)
        torch.set_num_threads(job.threads)
        self.method: Method = job.build().train()
        self.norms = norms.install(self.method, self.layout.norm_group, share=self.share)
        self.engine = Engine(
            self.method,
            job.optim,
            job.schedule,
            epochs=job.epochs,
            global_batch=job.plan.global_batch,
            zero=job.zero,
            precision=self.layout.precision,
            device=self.device,
        )
        self.counts = {"updates": 0, "skipped": 0, "bad": 0, "bad_in_epoch": 0}
        if commit is not None:
            self.engine.load_state(commits.load_state(commit))
            self.counts = dict(commit.manifest["counts"])
        self.score: float | None = None
        self.score_name: str | None = None  # which of the monitor's figures it is
        self.skipped_in_a_row = 0
        self.num_alike = 0  # samples of this rank without a gradient since the last record
        self.retries, self.is_bypassed = 0, False  # of the stores, on this rank
        self.views = Views(
            job.views,
            seed=job.plan.seed,
            mean=job.data.mean,
            std=job.data.std,
            dtype=torch.bfloat16 if self.layout.precision == "bf16" else torch.float32,
            device=self.device,
        )
        self.reader = Reader(Index(job.index), job.data.max_pixels, job.data.access)
        self.monitor = self._monitor()
        self.looks_ahead = type(self.method).before_epoch is not Method.before_epoch
        self.recorder = Recorder(job, commit, speaks=self.rank == 0)
        self.recorder.stage("workers", entered_s)

    def run(self, shares: Iterator[Share]) -> Outcome:
        """Train until the last step, a pause, a stop or a failure; always leaves a commit unless it failed."""
        job, per_epoch = self.job, self.job.plan.batches_per_epoch
        if self.commit is not None and self.commit.monitor_due:
            self._evaluate_late(self.commit)
        batches = self._batches(shares)
        while self.step < job.last_step:
            if self.looks_ahead and self.step % per_epoch == 0:
                self._before_epoch(self.step // per_epoch)
            with self.recorder.waiting():
                share, micros = next(batches)
            stop = self._train_step(share, micros)
            self.step += 1
            if self.skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW:
                return Outcome("failed", self._skip_message())
            if self.counts["bad_in_epoch"] > job.data.max_bad * job.plan.num_training:
                return Outcome("failed", self._bad_message())
            end_of_epoch = self.step % per_epoch == 0
            if end_of_epoch:
                self.counts["bad_in_epoch"] = 0
            if end_of_epoch and not stop:  # who stops has little time: the commit comes first
                self._evaluate(self.step // per_epoch)
            if stop or end_of_epoch or self.step % job.commit.every_steps == 0:
                failure = self._commit(monitor_due=end_of_epoch and stop)
                if failure:
                    return Outcome("failed", failure)
            if stop:
                return Outcome("interrupted")
        return Outcome("finished" if self.step >= job.steps else "paused")

    def _before_epoch(self, epoch: int) -> None:
        """What the method does with the whole set; its draws depend on seed and epoch."""
        plan = self.job.plan
        sweep = self._sweep(plan.training_ids(np.arange(plan.num_training)), keep=False)
        torch.manual_seed(int(rng.mix(SWEEP, plan.seed, epoch) >> np.uint64(1)))
        made_anew = self.method.before_epoch(epoch, lambda: sweep(self.method.encoder, self.engine.autocast))
        self.engine.renew(made_anew)

    @property
    def progress(self) -> float:
        """Of the step under way, in [0, 1)."""
        return self.step / self.job.steps

    def _batches(self, shares: Iterator[Share]) -> Iterator[tuple[Share, Micros]]:
        """The shares from the step under way on, with their micro-batches.

        On a GPU the next one is drawn and sent while this one trains; on a CPU there is nothing that would be idle.
        """
        on_gpu = self.device.type != "cpu"

        def drawn() -> Iterator[tuple[Share, Micros]]:
            for step, share in zip(range(self.step, self.job.last_step), shares):
                micros = self._micros(share, step)
                if on_gpu:
                    micros.begin()
                yield share, micros

        return ahead(drawn()) if on_gpu else drawn()

    def _train_step(self, share: Share, micros: Micros) -> bool:
        """One global batch; True if a stop is wanted. A step that is not finite anywhere is skipped."""
        job, step = self.job, self.step
        expected = step * job.plan.global_batch + self.rank * self.share
        assert share.positions[0] == expected, f"stream is at {share.positions[0]}, loop at {expected}"
        bad = self._report_bad(share)
        self.retries += share.retries
        self.is_bypassed |= share.is_bypassed
        self.engine.set_progress(self.progress)
        agreed: list[float] = []

        def proceed(loss: Tensor) -> bool:
            agreed.extend(self._agree(loss, bad))
            return agreed[0] == 0

        result = accumulate(
            self.method,
            micros,
            seeds=[self._draws(start) for start in range(0, self.share, self.layout.micro)],
            regime=self.layout.regime,
            norms=self.norms,
            autocast=self.engine.autocast,
            backward=self.engine.backward,
            proceed=proceed,
        )
        _, stop, num_bad, loss = agreed
        due = (step + 1) % job.metrics_every == 0 or step == 0 or step + 1 == job.steps
        grad_norms = self.engine.grad_norms() if due and result is not None else None
        taken = result is not None and self.engine.step()
        self._report_alike(share)  # waits for the device, like the step
        if result is not None and taken:
            self.norms.update()
            self.method.after_step(result.out, result.targets, result.batch)
        else:
            self.engine.zero_grad()
            self.norms.discard()
            log.warning("step %d skipped: loss or gradients are not finite", step)
        self.skipped_in_a_row = 0 if taken else self.skipped_in_a_row + 1
        for name, more in (
            ("updates", taken),
            ("skipped", not taken),
            ("bad", num_bad),
            ("bad_in_epoch", num_bad),
        ):
            self.counts[name] += int(more)
        self.recorder.stepped(step)
        if due:
            self._record(result, loss, grad_norms)
        return stop > 0

    def _micros(self, share: Share, step: int) -> Micros:
        """The share of a step as micro-batches; what their views draw depends on the sample and the epoch only."""
        return Micros(
            share,
            self.layout.micro,
            views=self.views,
            progress=step / self.job.steps,
            epoch=step // self.job.plan.batches_per_epoch,
            shuffle=lambda start: self._shuffle(step, self.rank * self.share + start),
            device=self.device,
        )

    def _draws(self, start: int) -> int:
        """Seed of what the forward of the micro-batch at `start` of the share draws; a function of its place."""
        first = self.rank * self.share + start
        return int(rng.mix(DRAWS, self.job.plan.seed, self.step, first) >> np.uint64(1))

    def _shuffle(self, step: int, start: int) -> Tensor | None:
        """Permutation inside each span of the micro-batch that starts at `start` of the global batch."""
        span = self.layout.norm_span
        if span is None:
            return None
        spans = [
            offset + rng.permutation(span, SHUFFLE, self.job.plan.seed, step, (start + offset) // span)
            for offset in range(0, self.layout.micro, span)
        ]
        return torch.from_numpy(np.concatenate(spans))

    def _agree(self, loss: Tensor, bad: int) -> list[float]:
        """Over all ranks: number of losses that are not finite, stops wanted, unreadable samples; mean of the others.

        The mean is NaN where no loss is finite.
        """
        stop = self.wants_stop()
        value = loss.detach().double()
        finite = torch.isfinite(value)
        flags = torch.stack([(~finite).double(), *value.new_tensor([stop, bad]), value.nan_to_num(0, 0, 0)])
        if collectives.is_distributed():
            dist.all_reduce(flags)
        not_finite, stops, num_bad, total = flags.tolist()
        num_finite = self.world_size - not_finite
        return [not_finite, stops, num_bad, total / num_finite if num_finite else math.nan]

    def _record(self, result: Result | None, loss: float, grad_norms: tuple[Any, Any] | None) -> None:
        """Metrics of this step, without a loss where no rank has one; collective."""
        metrics: dict[str, float] = {"lr": self.engine.lr, **self.counts}
        warning = self._alike_message()
        if self.reader.remote is not None:
            store = torch.tensor([float(self.retries), float(self.is_bypassed)], device=self.device)
            metrics["store_retries"], bypassed = collectives.sum(store).tolist()
            if bypassed and warning is None:
                warning = f"data.cache.folder {BYPASSED}"
        if math.isfinite(loss):
            metrics["loss"] = loss
        if result is not None and grad_norms is not None:
            told = {name: value for name, value in result.losses._asdict().items() if name != "loss"}
            if told:
                values = torch.stack([value.float() for value in told.values()])
                metrics |= zip(told, collectives.mean(values).tolist())
            metrics["grad_norm"], metrics["grad_norm_first"] = float(grad_norms[0]), float(grad_norms[1])
            metrics |= embedding_metrics(result.out[0])
        self.recorder.metrics(self.step, metrics, warning)

    def _monitor(self) -> Monitor | None:
        ids = self.job.plan.holdout_ids()
        if len(ids) < 2 or not self.job.views:  # an encoder of images is what is monitored
            return None
        return Monitor(self.job.monitor, self._sweep(ids, keep=True), self._zero_shot())

    def _zero_shot(self) -> ZeroShot | None:
        """Where the text is made of classes, and the method reads it."""
        captions = captions_of(self.job.data, self.reader.index)
        if captions is None or not isinstance(self.method, ReadsText):
            return None
        return ZeroShot(self.method, captions, self.device, self.job.vocabulary)

    def _sweep(self, ids: np.ndarray, *, keep: bool) -> Sweep:
        """Passes over these samples as the encoder takes them; keep: held in memory."""
        return Sweep(
            self.reader.index,
            ids,
            size=self.job.size,
            mean=self.job.data.mean,
            std=self.job.data.std,
            device=self.device,
            threads=self.job.threads,
            max_pixels=self.job.data.max_pixels,
            access=self.job.data.access,
            keep=keep,
        )

    def _evaluate(self, epoch: int) -> None:
        self.score = None
        if self.monitor is None or (epoch % self.job.monitor.every_epochs and epoch < self.job.last_epoch):
            return
        metrics = self.monitor(self.method.encoder, self.engine.autocast)
        if not metrics:
            return
        self.score_name = "knn" if "knn" in metrics else "h_effective_rank"
        self.score = metrics[self.score_name]
        warning = remarks(metrics, self.method.encoder.dim)
        if warning:
            log.warning("epoch %d: %s", epoch, warning)
        self.recorder.monitored(self.step, epoch, metrics, warning)

    def _evaluate_late(self, commit: commits.Commit) -> None:
        """The evaluation that a stop at the end of an epoch has put off."""
        self._evaluate(self.step // self.job.plan.batches_per_epoch)
        if self.rank == 0:
            commits.amend(commit, score=self.score, score_name=self.score_name, monitor_due=False)
        self.score = None

    def _commit(self, monitor_due: bool) -> str | None:
        """Commit on rank 0; what went wrong, known to all ranks, or None. Collective.

        monitor_due: an epoch has ended and is not evaluated yet.
        """
        facts = {
            **self.job.facts,
            "step": self.step,
            "counts": self.counts,
            "score": self.score,
            "score_name": self.score_name if self.score is not None else None,
            "monitor_due": monitor_due,
        }
        failure = committed(self.job, self.engine, facts)
        self.score = None
        return failure

    def _report_bad(self, share: Share) -> int:
        """Log the samples of this share that could not be read, and their number."""
        rows = np.flatnonzero(share.bad)
        for position, used in zip(share.positions[rows], share.ids[rows]):
            name, reason = self._describe(int(position))
            log.warning(
                "unreadable sample %s (%s), %s takes its place", name, reason, self.reader.index.where(used)
            )
        return len(rows)

    def _report_alike(self, share: Share) -> None:
        """Log the samples of this share that gave no gradient: their norm group is one image again and again."""
        places = self.norms.alike_samples()
        if places:
            names = ", ".join(self.reader.index.where(int(sample)) for sample in share.ids[places])
            log.warning("step %d: no gradient from a norm group of one image: %s", self.step, names)
        self.num_alike += len(places)

    def _alike_message(self) -> str | None:
        """How many samples gave no gradient since the last record, on all ranks, if there are any; collective."""
        total = int(collectives.sum(torch.tensor(float(self.num_alike), device=self.device)))
        self.num_alike = 0
        if not total:
            return None
        return (
            f"{total} samples gave no gradient: all images of their norm group are the same (blank frames?); they "
            f"are named in {self.job.run / 'logs'}/rank-*.log"
        )

    def _describe(self, position: int) -> tuple[str, str]:
        plan = self.job.plan
        step, slot = divmod(position, plan.global_batch)
        planned = plan.batch_ids(step)[slot]
        fields = self.method.needs.fields
        (why,) = self.reader.samples(np.array([planned]), bool(self.job.views), fields)
        return self.reader.index.where(planned), str(why)

    def _bad_message(self) -> str:
        return (
            f"{self.counts['bad_in_epoch']} unreadable samples in this epoch are more than data.max_bad="
            f"{self.job.data.max_bad:g} of {self.job.plan.num_training}; they are listed in "
            f"{self.job.run / 'logs'}/rank-*.log; mend them (`vergence shards check`) or raise data.max_bad"
        )

    def _skip_message(self) -> str:
        return (
            f"{MAX_SKIPPED_IN_A_ROW} steps in a row had a loss or gradients that are not finite, the last "
            f"one step {self.step - 1}; lower optim.lr, lengthen schedule.warmup_epochs or use precision=fp32"
        )
