"""What leaves the rank loop: metric records (metrics.jsonl) and commits."""

import math
import time
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from vergence.methods import collectives
from vergence.platform.errors import VergenceError
from vergence.platform.evaluate.spread import effective_rank, embedding_std
from vergence.platform.files import sync, write_atomic
from vergence.platform.runs import commit as commits
from vergence.platform.runs.records import FirstStep, Metrics, Monitored, Record, StepMark, line, parse
from vergence.platform.runs.run import facts_of, owns
from vergence.platform.train.engine import Engine, cpu_copy
from vergence.platform.train.job import Job

EMBEDDING_ROWS = 256  # of the global batch, whose spread and rank are told
PIECE_BYTES = 64 << 20  # of a tensor, that cross from a device at a time


class Recorder:
    """Appends records to logs/metrics.jsonl on rank 0, and measures what they report."""

    def __init__(self, job: Job, commit: commits.Commit | None, *, speaks: bool) -> None:
        self.job, self.speaks = job, speaks
        self.path = job.run / "logs" / "metrics.jsonl"
        self.window_start, self.window_steps, self.waited_s = time.perf_counter(), 0, 0.0
        self.stages: dict[str, float] | None = dict(job.stages)  # of the start; None once told
        self.mark = StepMark(job.run / "logs")
        if speaks:
            cut(self.path, commit.step if commit else 0, commit is not None and commit.monitor_due)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Around the wait for the next batch."""
        self.stage("model")
        start = time.perf_counter()
        yield
        self.waited_s += time.perf_counter() - start
        self.stage("data")

    def stage(self, name: str, moment: float | None = None) -> None:
        """A stage of the start is done; only the first time counts."""
        if self.stages is not None:
            self.stages.setdefault(name, moment or time.time())

    def stepped(self, step: int) -> None:
        self.window_steps += 1
        if self.speaks:
            self.mark.write(step + 1)
        if self.stages is not None:
            self.stage("first step")
            self._append(FirstStep(step, self.stages))
            self.stages = None
            self._begin_window()  # the start is no part of the speed

    def metrics(self, step: int, metrics: Mapping[str, float], warning: str | None = None) -> None:
        """A record of the metrics after `step`, with the speed since the last one; the first step has none."""
        elapsed = time.perf_counter() - self.window_start
        images = self.window_steps * self.job.plan.global_batch
        speed = (
            {"images_per_s": images / elapsed, "data_wait_share": self.waited_s / elapsed} if images else {}
        )
        self._append(Metrics(step, time.time(), {**metrics, **speed}, warning))
        self._begin_window()

    def monitored(self, step: int, epoch: int, metrics: Mapping[str, float], warning: str | None) -> None:
        """A record of the monitor, made after `step` steps; its time does not count as training."""
        self._append(Monitored(step - 1, time.time(), epoch, metrics, warning))
        self._begin_window()

    def _begin_window(self) -> None:
        self.window_start, self.window_steps, self.waited_s = time.perf_counter(), 0, 0.0

    def _append(self, record: Record) -> None:
        if self.speaks and owns(self.job.run, self.job.attempt):
            with self.path.open("a") as file:
                file.write(line(record))


def embedding_metrics(z: Tensor) -> dict[str, float]:
    """Spread and effective rank of the embeddings, on rank 0, elsewhere {}; collective.

    z: (n, ..., d) on this rank; of several views the first. The first rows of each rank enter, 256 in all.
    """
    own = z.detach()[: math.ceil(EMBEDDING_ROWS / collectives.world_size())].float()
    rows = collectives.gather(own.flatten(1, -2)[:, 0] if own.dim() > 2 else own)
    if collectives.rank():
        return {}
    features = rows[:EMBEDDING_ROWS].cpu().numpy()
    return {
        "embedding_std": embedding_std(features),
        "effective_rank": effective_rank(features),
    }


def cut(path: Path, start_step: int, monitor_due: bool = False) -> None:
    """Drop the records of what will be done again from a commit at `start_step` on, and half-written lines."""
    if not path.exists():
        return
    kept = []
    for text in path.read_bytes().splitlines():
        record = parse(text)
        if record is None:
            continue
        again = monitor_due and record.step == start_step - 1 and isinstance(record, Monitored)
        if record.step < start_step and not again:
            kept.append(text.decode())
    write_atomic(path, "".join(text + "\n" for text in kept))


def committed(job: Job, engine: Engine, facts: Mapping[str, Any]) -> str | None:
    """Commit the state on rank 0 after proving that all ranks hold the same; collective.

    Rank 0 copies it to the CPU, the others hold no more than one tensor besides. Returns what went wrong, the same
    on every rank: it is not raised, because a restart would not mend it.
    """
    state, sums = _collect(engine)
    failure = [_difference(sums)]
    if failure[0] is None and collectives.rank() == 0:
        try:
            with suppress(FileNotFoundError):
                sync(job.run / "logs" / "metrics.jsonl")  # of steps that are not done again after this
            facts = {**facts, "run": facts_of(job.run).dump()}  # so that run.json can be made anew
            made = commits.write(
                job.run / "commits", state, facts, job.attempt, owned=lambda: owns(job.run, job.attempt)
            )
            if owns(job.run, job.attempt):
                commits.prune(job.run / "commits", job.commit.keep, made)
        except (OSError, VergenceError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            failure = [f"commit at step {facts['step']} failed: {reason}; the last commit is intact"]
    if collectives.is_distributed():
        dist.broadcast_object_list(failure, src=0)
    return failure[0]


def _collect(engine: Engine) -> tuple[dict[str, Tensor], dict[str, int]]:
    """Copies of the state, on rank 0 only, and a checksum of each tensor where there are ranks to compare; collective."""
    state, sums = {}, {}
    for name, tensor in engine.tensors():
        if collectives.is_distributed():
            sums[name] = checksum(tensor)
        if collectives.rank() == 0:
            state[name] = cpu_copy(tensor)
    return state, sums


def checksum(tensor: Tensor) -> int:
    """crc32 of a tensor's bytes, of any dtype, as they lie in memory; from a device a piece at a time."""
    order = sorted(range(tensor.dim()), key=tensor.stride, reverse=True)
    dense = tensor.permute(order).contiguous().view(-1).view(torch.uint8)  # no copy, channels_last or not
    total = 0
    for piece in dense.split(PIECE_BYTES):
        total = zlib.crc32(piece.cpu().numpy(), total)
    return total


def _difference(sums: Mapping[str, int]) -> str | None:
    """Names of the tensors that are not bit-equal on all ranks, as a message; collective."""
    if not collectives.is_distributed():
        return None
    everyone: list[Any] = [None] * collectives.world_size()
    dist.all_gather_object(everyone, sums)
    differing = [name for name in sums if len({other.get(name) for other in everyone}) > 1]
    if not differing:
        return None
    return f"the ranks differ in {', '.join(differing[:5])} ({len(differing)} tensors): this is a bug"
