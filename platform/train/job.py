"""What every rank must know about a run, resolved by the driver, plain and picklable."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vergence.methods.method import Method
from vergence.platform.augment.presets import ViewSpec
from vergence.platform.data.config import DataConfig
from vergence.platform.data.plan import Plan
from vergence.platform.data.vocabulary import Vocabulary
from vergence.platform.evaluate.config import MonitorConfig
from vergence.platform.runs.commit import CommitConfig
from vergence.platform.runs.outcome import outcome_file
from vergence.platform.train.layout import LayoutSpec
from vergence.platform.train.machine import Machine
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
    vocabulary: Vocabulary | None  # of the texts; none: bytes
    layout: LayoutSpec  # each rank calls `layout` on it, with its number of ranks and the machine
    machine: Machine  # as the driver has measured it, where the ranks run
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
    pause_after: int | None = None  # epochs; the run goes on another time

    @property
    def steps(self) -> int:
        """Global batches of the whole run."""
        return self.epochs * self.plan.batches_per_epoch

    @property
    def last_epoch(self) -> int:
        """Epochs done when this attempt ends."""
        return min(self.epochs, self.pause_after or self.epochs)

    @property
    def last_step(self) -> int:
        return self.last_epoch * self.plan.batches_per_epoch

    @property
    def stop_file(self) -> Path:
        return self.run / f"STOP.{self.attempt}"

    @property
    def outcome_file(self) -> Path:
        return outcome_file(self.run, self.attempt)
