"""The monitor: how good the representation is on held-out samples, and whether it has collapsed.

Weighted kNN, leave-one-out within the holdout, on the encoder's output h in eval mode. Without labels
only the spread and the effective rank of h. The loss never selects anything (DESIGN §4).
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import BaseModel, Field, PositiveFloat, PositiveInt

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from vergence.platform.data.read import Reader

BATCH = 256
FEW = 10  # samples below which neither spread nor rank says anything


class MonitorConfig(BaseModel, frozen=True, extra="forbid", strict=True):
    every_epochs: PositiveInt = Field(1, description="epochs between evaluations on the holdout")
    k: PositiveInt = Field(20, description="neighbours")
    temperature: PositiveFloat = Field(0.1, description="a neighbour weighs exp(cosine / temperature)")


class Monitor:
    """Evaluates an encoder on the holdout; every rank embeds its part. Collective."""

    def __init__(
        self,
        config: MonitorConfig,
        *,
        ids: np.ndarray,
        reader: "Reader",
        size: int,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        device: "torch.device",
        threads: int,
    ) -> None:
        """threads: how many read and resize the images."""
        import torch

        from vergence.methods import collectives
        from vergence.platform.encoders.embed import shard_source, stream_images

        self.config, self.device = config, device
        self.mean = torch.tensor(mean, device=device).view(3, 1, 1) * 255
        self.std = torch.tensor(std, device=device).view(3, 1, 1) * 255
        own = ids[collectives.rank() :: collectives.world_size()]
        source = shard_source(reader.index, reader.max_pixels)
        parts = list(stream_images(source, own, size, threads=threads))
        self.ids = np.concatenate([np.empty(0, np.int64), *(good for good, _ in parts)])
        self.images = np.concatenate(
            [np.empty((0, size, size, 3), np.uint8), *(images for _, images in parts)]
        )
        self.num_bad = len(own) - len(self.ids)
        self.labels = reader.index.labels(self.ids)

    def __call__(
        self, encoder: "nn.Module", autocast: Callable[[], AbstractContextManager[Any]]
    ) -> dict[str, float]:
        """{h_std, h_effective_rank, holdout, holdout_bad, holdout_unlabelled, knn}. The same on every rank.

        holdout: samples that were embedded; holdout_bad: those that cannot be read. Empty if none can be. The last two
        only where the set has classes: knn is measured on the samples that have one, if they are two.
        """
        from vergence.platform.encoders import knn

        everyone = _gather((self.ids, self._embed(encoder, autocast), self.labels, self.num_bad))
        parts = [(ids, features, labels) for ids, features, labels, _ in everyone if len(ids)]
        if not parts:
            return {}
        order = np.argsort(np.concatenate([ids for ids, _, _ in parts]))
        features = np.concatenate([features for _, features, _ in parts])[order]
        metrics = {
            "h_std": float(knn.embedding_std(features)),
            "h_effective_rank": float(knn.effective_rank(features)),
            "holdout": len(features),
            "holdout_bad": sum(bad for _, _, _, bad in everyone),
        }
        if self.labels is not None:
            labels = np.concatenate([labels for _, _, labels in parts])[order]
            metrics["holdout_unlabelled"] = int((labels < 0).sum())
            features, labels = features[labels >= 0], labels[labels >= 0]
            if len(labels) > 1:
                metrics["knn"] = self._knn(features, labels)
        return metrics

    def _knn(self, features: np.ndarray, labels: np.ndarray) -> float:
        from vergence.platform.encoders.knn import knn_predict

        k, temperature = self.config.k, self.config.temperature
        predicted = knn_predict(features, labels, features, k=k, temperature=temperature, exclude_self=True)
        return float((np.asarray(predicted) == labels).mean())

    def _embed(self, encoder: "nn.Module", autocast: Callable[[], AbstractContextManager[Any]]) -> np.ndarray:
        import torch

        pieces: list[Tensor] = []
        was_training = encoder.training
        encoder.eval()
        with torch.no_grad(), autocast():
            for start in range(0, len(self.images), BATCH):
                pixels = torch.from_numpy(self.images[start : start + BATCH]).to(self.device)
                x = pixels.permute(0, 3, 1, 2).float().sub_(self.mean).div_(self.std)
                pieces.append(encoder(x).float().cpu())
        encoder.train(was_training)
        return torch.cat(pieces).numpy() if pieces else np.zeros((0, 1), np.float32)


def verdict(metrics: dict[str, float], dim: int) -> str | None:
    """The likely cause in words if the representation has collapsed, else None.

    h is not centred (ReLU outputs share a large mean), so the bounds are far below healthy values.
    """
    if metrics["holdout"] < FEW:
        return None
    if metrics["h_std"] < 0.02 / dim**0.5:
        return (
            "collapsed: all images get the same representation; without negatives look at predictor and "
            "stop-gradient, with them at temperature and learning rate"
        )
    if metrics["h_effective_rank"] < 2:
        return (
            "collapsed to a line: the representation varies in one direction only; "
            "lower the learning rate, strengthen the augmentation or check the projector's norms"
        )
    return None


def remarks(metrics: dict[str, float], dim: int) -> str | None:
    """What a record of the monitor says in words: a collapse, and samples that the kNN could not use."""
    words = [verdict(metrics, dim)]
    if metrics.get("holdout_unlabelled"):
        count, unlabelled = int(metrics["holdout"]), int(metrics["holdout_unlabelled"])
        if "knn" in metrics:
            words.append(
                f"kNN over {count - unlabelled:,} of {count:,} held-out samples: the others have no class"
            )
        else:
            words.append(
                f"no kNN: {unlabelled:,} of {count:,} held-out samples have no class; the score is the effective rank"
            )
    return "; ".join(filter(None, words)) or None


def _gather(value: Any) -> list[Any]:
    import torch.distributed as dist

    from vergence.methods import collectives

    if not collectives.is_distributed():
        return [value]
    values: list[Any] = [None] * collectives.world_size()
    dist.all_gather_object(values, value)
    return values
