"""The learning rate as a function of progress alone, so that a resumed run cannot disagree."""

import math
from typing import Literal

from pydantic import BaseModel, Field


class ScheduleConfig(BaseModel, frozen=True, extra="forbid", strict=True):
    name: Literal["cosine", "constant"] = Field(
        default="cosine", description="shape after the warm-up: half a cosine down to the floor, or constant"
    )
    warmup_epochs: float = Field(
        default=0, ge=0, description="epochs of linear warm-up from 0; may be as long as the run"
    )
    floor: float = Field(
        default=0, ge=0, le=1, description="where the cosine ends, as a fraction of the learning rate"
    )


def factor(config: ScheduleConfig, progress: float, epochs: float) -> float:
    """What the learning rate is multiplied with, in [0, 1]. progress in [0, 1] of a run of `epochs`.

    SimCLR, arXiv:2002.05709, appendix B.6: linear warm-up, then
    f + (1 - f) (1 + cos(pi t)) / 2 without restarts.
    """
    warmup = config.warmup_epochs / epochs
    if progress < warmup:
        return progress / warmup
    if config.name == "constant" or warmup >= 1:
        return 1.0
    t = (progress - warmup) / (1 - warmup)
    return config.floor + (1 - config.floor) * (1 + math.cos(math.pi * t)) / 2
