"""What every rank must know about a run, resolved by the driver, plain and picklable."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from torch import nn

from vergence.platform.augment.presets import ViewSpec
from vergence.platform.data.config import DataConfig
from vergence.platform.data.plan import Plan
from vergence.platform.runs.commit import CommitConfig
from vergence.platform.runs.monitor import MonitorConfig
from vergence.platform.train.optim.config import OptimConfig
from vergence.platform.train.schedule import ScheduleConfig


@dataclass(frozen=True)
class Job:
    run: Path
    attempt: str
    build: Callable[[], nn.Module]  # the method, initialised from the recipe's seed
    index: Path
    plan: Plan
    epochs: int
    views: tuple[ViewSpec, ...]
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
    def size(self) -> int:
        """Side in pixels at which the encoder is monitored and exported: that of the first view."""
        return self.views[0].size

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
