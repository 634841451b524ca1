"""The recipe's `data` section."""

from typing import Annotated, Literal

from pydantic import BaseModel, Field, PositiveFloat, PositiveInt, field_validator

from vergence.platform.data.order import FULL, Order

CLASS = "{class}"  # in a template

SHARE, LEAST_SHARE, LEAST_IMAGES = 0.02, 0.1, 500  # of the holdout by default, and what it is at least


class DataConfig(BaseModel, frozen=True, extra="forbid", strict=True):
    train: str = Field(description="shards: a tar, a folder of tars, a glob, a brace range; or their URL")
    captions: tuple[str, ...] = Field(
        (),
        description=f"templates that make a sample's text of its class, e.g. a photo of a {CLASS}; one is drawn for "
        "each sample and epoch; none: the text is the sample's own (.txt)",
    )
    order: Order = Field(FULL, description="in which samples come; a part of the run's identity")
    holdout: Annotated[float, Field(ge=0, le=0.5)] | Literal["auto"] = Field(
        "auto",
        description=f"share of the samples kept for the monitor; 0 = none; auto: {SHARE:g}, but at least the smaller of "
        f"{LEAST_SHARE:g} and {LEAST_IMAGES} samples",
    )
    max_bad: float = Field(0.01, ge=0, le=1, description="share of unreadable samples at which a run stops")
    max_pixels: PositiveInt = Field(50_000_000, description="images with more pixels count as unreadable")
    readers: PositiveInt = Field(1, description="Ray Data tasks that read and decode at the same time, a run")
    reader_cpus: PositiveFloat = Field(1.0, description="CPUs that each reader takes")
    mean: tuple[float, float, float] = Field((0.485, 0.456, 0.406), description="pixel mean, RGB in [0, 1]")
    std: tuple[PositiveFloat, PositiveFloat, PositiveFloat] = Field(
        (0.229, 0.224, 0.225), description="pixel standard deviation, RGB in [0, 1]"
    )

    def holdout_share(self, num_samples: int) -> float:
        """The share that is held out of so many samples."""
        if self.holdout != "auto":
            return self.holdout
        return max(SHARE, min(LEAST_SHARE, LEAST_IMAGES / max(1, num_samples)))

    @field_validator("captions")
    @classmethod
    def _with_a_class(cls, templates: tuple[str, ...]) -> tuple[str, ...]:
        for template in templates:
            if CLASS not in template:
                raise ValueError(
                    f"a template has {CLASS} where the name of the class stands, {template!r} has none"
                )
        return templates
