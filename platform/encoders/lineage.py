"""The data of a run, as MLflow's lineage names it. Importing this imports MLflow."""

import json
from typing import Any

from mlflow.data.dataset_source import DatasetSource
from mlflow.data.meta_dataset import MetaDataset
from mlflow.entities import Dataset, DatasetInput, InputTag

from vergence.platform.data.expand import expand
from vergence.platform.data.index import Index
from vergence.platform.masking import masked
from vergence.platform.text import printable

MAX_DIGEST = 36  # characters, MLflow's limit
MAX_NAME = 500


class ShardsSource(DatasetSource):
    """Webdataset shards, named by a pattern."""

    def __init__(self, pattern: str, shards: int, samples: int, digest: str) -> None:
        self.pattern, self.shards, self.samples, self.digest = pattern, shards, samples, digest

    @staticmethod
    def _get_source_type() -> str:
        return "webdataset"

    def load(self) -> list[str]:
        """The shards' paths or URLs, in order; UserError: they are not there."""
        return [shard.url for shard in expand(self.pattern).found]

    @staticmethod
    def _can_resolve(raw_source: Any) -> bool:
        return False  # a pattern alone does not say that it names shards

    @classmethod
    def _resolve(cls, raw_source: Any) -> "ShardsSource":
        raise TypeError("a pattern alone does not say that it names shards")

    def to_dict(self) -> dict[str, Any]:
        return {
            "pattern": self.pattern,
            "shards": self.shards,
            "samples": self.samples,
            "digest": self.digest,
        }

    @classmethod
    def from_dict(cls, source_dict: dict[Any, Any]) -> "ShardsSource":
        return cls(**source_dict)


class ShardsDataset(MetaDataset):
    """A set of shards by its index: named by the pattern, its digest the beginning of ours."""

    def __init__(self, pattern: str, index: Index) -> None:
        text = masked(printable(pattern))
        self._profile = {"shards": len(index.shards), "samples": len(index)}
        source = ShardsSource(text, digest=index.digest, **self._profile)
        super().__init__(source, name=text[:MAX_NAME], digest=index.digest[:MAX_DIGEST])

    @property
    def profile(self) -> dict[str, int]:
        return self._profile

    def to_dict(self) -> dict[str, str]:
        return {**super().to_dict(), "profile": json.dumps(self.profile)}


def training_input(dataset: ShardsDataset) -> DatasetInput:
    """What a run is told of the data that it was trained on."""
    return DatasetInput(Dataset(**dataset.to_dict()), [InputTag("mlflow.data.context", "training")])
