"""What every rank must know about a run, resolved by the driver, plain and picklable."""

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from vergence.methods.method import Method
from vergence.platform.augment.presets import ViewSpec
from vergence.platform.data.config import DataConfig
from vergence.platform.data.plan import Plan
from vergence.platform.evaluate.config import MonitorConfig
from vergence.platform.runs.commit import CommitConfig
from vergence.platform.train.optim.config import OptimConfig
from vergence.platform.train.schedule import ScheduleConfig


@dataclass(frozen=True)
class Job:
    run: Path
    attempt: str
    build: Callable[[], Method]  # the method, initialised from the recipe's seed
    index: Path
    plan: Plan
    epochs: int
    views: tuple[ViewSpec, ...]
    size: int  # side in pixels at which the encoder is monitored and swept
    data: DataConfig
    norm_group: int | Literal["global"]
    norm_span: int | None
    micro: int
    regime: Literal["one", "kept", "two-pass"]
    precision: Literal["fp32", "bf16"]
    device: str
    threads: int
    zero: int
    optim: OptimConfig
    schedule: ScheduleConfig
    monitor: MonitorConfig
    commit: CommitConfig
    metrics_every: int
    facts: Mapping[str, Any]  # recipe, digests and code version, as every commit's manifest carries them
    stages: Mapping[str, float]  # stage of the start -> Unix time at which the driver had done it

    @property
    def steps(self) -> int:
        """Global batches of the whole run."""
        return self.epochs * self.plan.batches_per_epoch

    @property
    def stop_file(self) -> Path:
        return self.run / f"STOP.{self.attempt}"

    @property
    def outcome_file(self) -> Path:
        return self.run / "logs" / f"outcome.{self.attempt}.json"


class Outcome(NamedTuple):
    """How the rank loop ended; `failed` is for what a restart would not mend."""

    status: Literal["finished", "interrupted", "failed"]
    message: str = ""


_OUTCOME_BYTES = 4096


def reserve_outcome(job: Job) -> None:
    """Make room for the outcome, so that a full disk can be told; by the driver, before the ranks start."""
    job.outcome_file.write_bytes(b" " * _OUTCOME_BYTES)


def leave_outcome(job: Job, outcome: Outcome) -> None:
    """Leave the outcome of this attempt for the driver, in the room that was reserved; the first one counts."""
    if read_outcome(job) is None:
        message = outcome.message
        while len(text := json.dumps(outcome._replace(message=message)._asdict())) > _OUTCOME_BYTES:
            message = message[: len(message) // 2]
        descriptor = os.open(job.outcome_file, os.O_WRONLY)
        try:
            os.pwrite(descriptor, text.ljust(_OUTCOME_BYTES).encode(), 0)
        finally:
            os.close(descriptor)


def read_outcome(job: Job) -> Outcome | None:
    """The outcome that a rank of this attempt has left."""
    try:
        return Outcome(**json.loads(job.outcome_file.read_text()))
    except (FileNotFoundError, ValueError):
        return None
