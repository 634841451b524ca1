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

MAX_SAMPLES = 5000
BATCH = 256


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
    ) -> None:
        import torch

        from vergence.methods import collectives
        from vergence.platform.data.decode import BadSample
        from vergence.platform.encoders.resize import resize

        self.config, self.device = config, device
        self.mean = torch.tensor(mean, device=device).view(3, 1, 1) * 255
        self.std = torch.tensor(std, device=device).view(3, 1, 1) * 255
        own = ids[collectives.rank() :: collectives.world_size()]
        images = reader.images(own)
        good = np.array([not isinstance(image, BadSample) for image in images], bool)
        self.images = [resize(image, size) for image in images if not isinstance(image, BadSample)]
        self.num_bad = int((~good).sum())
        labels = reader.labels(own)
        self.labels = None if labels is None else labels[good]
        self.ids = own[good]

    def __call__(
        self, encoder: "nn.Module", autocast: Callable[[], AbstractContextManager[Any]]
    ) -> dict[str, float]:
        """{knn, h_std, h_effective_rank}; knn only with labels. The same on every rank."""
        from vergence.platform.encoders import knn

        parts = _gather((self.ids, self._embed(encoder, autocast), self.labels))
        order = np.argsort(np.concatenate([ids for ids, _, _ in parts]))
        features = np.concatenate([features for _, features, _ in parts])[order]
        metrics = {
            "h_std": float(knn.embedding_std(features)),
            "h_effective_rank": float(knn.effective_rank(features)),
        }
        if len(features) > 1 and all(labels is not None for _, _, labels in parts):
            labels = np.concatenate([labels for _, _, labels in parts])[order]
            predicted = knn.knn_predict(
                features,
                labels,
                features,
                k=self.config.k,
                temperature=self.config.temperature,
                num_classes=int(labels.max()) + 1,
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
                pixels = torch.from_numpy(np.stack(self.images[start : start + BATCH])).to(self.device)
                x = pixels.permute(0, 3, 1, 2).float().sub_(self.mean).div_(self.std)
                pieces.append(encoder(x).float().cpu())
        encoder.train(was_training)
        return torch.cat(pieces).numpy() if pieces else np.zeros((0, 1), np.float32)


def verdict(metrics: dict[str, float], dim: int) -> str | None:
    """The likely cause in words if the representation has collapsed, else None.

    h is not centred (ReLU outputs share a large mean), so the bounds are far below healthy values.
    """
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


def _gather(value: Any) -> list[Any]:
    import torch.distributed as dist

    from vergence.methods import collectives

    if not collectives.is_distributed():
        return [value]
    values: list[Any] = [None] * collectives.world_size()
    dist.all_gather_object(values, value)
    return values
