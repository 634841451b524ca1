"""Settings that change while a run goes on, as functions of progress alone: a resumed run cannot disagree."""

import math
from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    Discriminator,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    Strict,
    Tag,
    model_validator,
)


class Schedule(BaseModel, frozen=True, extra="forbid", strict=True):
    """Linearly from `start` to `peak`, then in a shape from `peak` to `end`, without restarts.

    SimCLR, arXiv:2002.05709, appendix B.6; BYOL, arXiv:2006.07733, section 3.3; DINO, arXiv:2104.14294, section 3.
    """

    start: float | None = Field(None, description="value at the start of the warm-up; default: the peak")
    peak: float = Field(description="value when the warm-up is over")
    end: float | None = Field(None, description="value at the end of the run; default: the peak")
    warmup_epochs: NonNegativeFloat = Field(
        0, description="epochs of linear warm-up; may be as long as the run"
    )
    shape: Literal["cosine", "linear", "steps", "constant"] = Field(
        "cosine", description="the way from peak to end: half a cosine, a line, steps, or none at all"
    )
    steps: tuple[Annotated[tuple[PositiveFloat, float], Strict(False)], ...] = Field(
        (),
        strict=False,  # lists from YAML, also behind a validator that sees them first
        description="shape steps: [epoch, value] pairs, the value from that epoch on; the peak before the first",
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.shape == "steps") != bool(self.steps):
            raise ValueError(
                f"shape {self.shape} with {len(self.steps)} steps: shape steps needs steps: [[epoch, value], ...], and no "
                "other shape has any (steps: [])"
            )
        epochs = [epoch for epoch, _ in self.steps]
        if epochs != sorted(set(epochs)):
            raise ValueError(f"steps: an epoch comes after those before it, got {epochs}")
        return self

    def at(self, progress: float, epochs: float) -> float:
        """The value at a progress in [0, 1] of a run of `epochs`."""
        warmup = self.warmup_epochs / epochs
        if progress < warmup:
            start = self.peak if self.start is None else self.start
            return start + (self.peak - start) * (progress / warmup)
        if self.shape == "steps":
            return [self.peak, *(value for epoch, value in self.steps if epoch / epochs <= progress)][-1]
        if self.shape == "constant" or self.end is None or warmup >= 1:
            return self.peak
        t = (progress - warmup) / (1 - warmup)
        if self.shape == "linear":
            return self.end + (self.peak - self.end) * (1 - t)
        return self.end + (self.peak - self.end) * (1 + math.cos(math.pi * t)) / 2

    @property
    def values(self) -> list[float]:
        """All that are given."""
        steps = (value for _, value in self.steps)
        return [value for value in (self.start, self.peak, self.end, *steps) if value is not None]


def scheduled(value: float | Schedule, end: float | None = None) -> Schedule:
    """A plain number as a schedule: constant, or by a half-cosine to `end`."""
    return value if isinstance(value, Schedule) else Schedule(peak=value, end=end)


SCHEDULE_TAG = "a-schedule"


def _tag(value: object) -> str:
    return SCHEDULE_TAG if isinstance(value, Mapping | Schedule) else "a-number"


def _between(low: float, high: float = math.inf, *, above: bool = False) -> AfterValidator:
    """above: `low` itself is not allowed."""
    limit = f"greater than {low:g}" if above else f"at least {low:g}"
    limit += "" if math.isinf(high) else f" and at most {high:g}"

    def check(value: float | Schedule) -> float | Schedule:
        for each in scheduled(value).values:
            if not low <= each <= high or (above and each == low):
                raise ValueError(f"input should be {limit}")
        return value

    return AfterValidator(check)


Scheduled = Annotated[
    Annotated[float, Tag("a-number")] | Annotated[Schedule, Tag(SCHEDULE_TAG)], Discriminator(_tag)
]
"""A number, or how it changes."""
Positive = Annotated[Scheduled, _between(0, above=True)]
NonNegative = Annotated[Scheduled, _between(0)]
Share = Annotated[Scheduled, _between(0, 1)]
