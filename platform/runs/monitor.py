"""The monitor: how good the representation is on held-out samples, and whether it has collapsed.

Weighted kNN, leave-one-out within the holdout, on the encoder's output h in eval mode. Without labels
only the spread and the effective rank of h. The loss never selects anything (DESIGN §4).
"""

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import BaseModel, Field, PositiveFloat, PositiveInt

from vergence.platform.errors import VergenceError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from vergence.platform.data.read import Reader

log = logging.getLogger(__name__)

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
        self.labels = _labels(reader, self.ids)

    def __call__(
        self, encoder: "nn.Module", autocast: Callable[[], AbstractContextManager[Any]]
    ) -> dict[str, float]:
        """{h_std, h_effective_rank, holdout, holdout_bad, knn}; knn only with labels. The same on every rank.

        holdout: samples that were embedded; holdout_bad: those that cannot be read. Empty if none can be.
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
        if len(features) > 1 and all(labels is not None for _, _, labels in parts):
            labels = np.concatenate([labels for _, _, labels in parts])[order]
            predicted = knn.knn_predict(
                features,
                labels,
                features,
                k=self.config.k,
                temperature=self.config.temperature,
                exclude_self=True,
            )
            metrics["knn"] = float((np.asarray(predicted) == labels).mean())
        return metrics

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


def _labels(reader: "Reader", ids: np.ndarray) -> np.ndarray | None:
    """Classes of the samples; None, and a line in the log, when one of them has none."""
    try:
        return reader.labels(ids)
    except VergenceError as error:
        log.warning("no kNN on the holdout: %s", error)
        return None


def _gather(value: Any) -> list[Any]:
    import torch.distributed as dist

    from vergence.methods import collectives

    if not collectives.is_distributed():
        return [value]
    values: list[Any] = [None] * collectives.world_size()
    dist.all_gather_object(values, value)
    return values
