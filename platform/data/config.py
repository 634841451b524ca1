"""The recipe's `data` section."""

from pydantic import BaseModel, Field, PositiveFloat, PositiveInt


class DataConfig(BaseModel, frozen=True, extra="forbid", strict=True):
    train: str = Field(description="shards: a tar, a folder of tars, a glob or a brace range")
    holdout: float = Field(
        0.02, ge=0, le=0.5, description="share of the samples kept for the monitor; 0 = none"
    )
    max_bad: float = Field(0.01, ge=0, le=1, description="share of unreadable samples at which a run stops")
    max_pixels: PositiveInt = Field(50_000_000, description="images with more pixels count as unreadable")
    readers: PositiveInt = Field(1, description="Ray Data tasks that read and decode at the same time, a run")
    reader_cpus: PositiveFloat = Field(1.0, description="CPUs that each reader takes")
    mean: tuple[float, float, float] = Field((0.485, 0.456, 0.406), description="pixel mean, RGB in [0, 1]")
    std: tuple[PositiveFloat, PositiveFloat, PositiveFloat] = Field(
        (0.229, 0.224, 0.225), description="pixel standard deviation, RGB in [0, 1]"
    )
