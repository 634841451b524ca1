"""The recipe's `data` section."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, Field, PositiveFloat, PositiveInt, ValidationInfo, field_validator

from vergence.platform.data.order import FULL, Order
from vergence.platform.data.remote import Access
from vergence.platform.store import PATIENCE_S, is_url

CLASS = "{class}"  # in a template
BYTES = 256  # of a vocabulary: the tokens of a text are its bytes

SHARE, LEAST_SHARE, LEAST_IMAGES = 0.02, 0.1, 500  # of the holdout by default, and what it is at least


class CacheConfig(BaseModel, frozen=True, extra="forbid", strict=True):
    """What is kept, on each node, of shards that lie in a store."""

    folder: str | None = Field(None, description="a disk of the node; null: the folder for temporary files")
    gigabytes: PositiveFloat = Field(10.0, description="at most; a set that fits is fetched once")


class DataConfig(BaseModel, frozen=True, extra="forbid", strict=True):
    train: str = Field(description="shards: a tar, a folder of tars, a glob, a brace range; or their URL")
    captions: tuple[str, ...] = Field(
        (),
        description=f"templates that make a sample's text of its class, e.g. a photo of a {CLASS}; one is drawn for "
        "each sample and epoch; none: the text is the sample's own (.txt)",
    )
    vocabulary: int = Field(
        BYTES,
        ge=BYTES,
        le=1 << 20,
        description=f"different tokens that texts are made of, at most; {BYTES}: bytes; more: pairs of bytes too, learned "
        "from the set's captions",
    )
    order: Order = Field(
        FULL, validate_default=True, description="in which samples come; a part of the run's identity"
    )
    cache: CacheConfig = Field(CacheConfig(), description="of shards that lie in a store")
    patience: PositiveFloat = Field(
        PATIENCE_S, description="seconds that a store may fail to answer before the run ends"
    )
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

    @property
    def access(self) -> Access:
        """How shards in a store are read."""
        folder = Path(self.cache.folder).expanduser() if self.cache.folder else None
        fit = self.order.kind == "full"
        return Access(self.patience, self.order.chunk, fit, folder, int(self.cache.gigabytes * 1e9))

    @field_validator("order")
    @classmethod
    def _neighbours_from_a_store(cls, order: Order, info: ValidationInfo) -> Order:
        """A store is asked once for a chunk, where a full order would ask for each sample."""
        if "kind" in order.model_fields_set or not is_url(info.data.get("train", "")):
            return order
        return order.model_copy(update={"kind": "chunk"})

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
