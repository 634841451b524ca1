"""The learning rate's schedule, in fractions of it."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, NonNegativeFloat, PositiveFloat, Strict, model_validator

from vergence.methods.schedule import Schedule

_BEFORE = {"name": "shape", "floor": "end"}  # what the settings were called in version 0.1


class ScheduleConfig(Schedule, frozen=True):
    """By default from 0 to the whole and, half a cosine later, to 0."""

    start: NonNegativeFloat = Field(
        0, description="where the warm-up starts, as a fraction of the learning rate"
    )
    peak: NonNegativeFloat = Field(1, description="where it ends, as a fraction of the learning rate")
    end: NonNegativeFloat = Field(0, description="where the run ends, as a fraction of the learning rate")
    steps: tuple[Annotated[tuple[PositiveFloat, NonNegativeFloat], Strict(False)], ...] = Field(
        (),
        strict=False,
        description="shape steps: [epoch, fraction of the learning rate] pairs, from that epoch on",
    )

    @model_validator(mode="before")
    @classmethod
    def _rename(cls, raw: Any) -> Any:
        if not isinstance(raw, Mapping):
            return raw
        renamed = {old: new for old, new in _BEFORE.items() if new not in raw}
        return {renamed.get(key, key): value for key, value in raw.items()}
