"""The monitor: how good the representation is on held-out samples, and whether it has collapsed.

Weighted kNN, leave-one-out within the holdout, on the encoder's output h in eval mode. Without labels
only the spread and the effective rank of h. The loss never selects anything (DESIGN §4).
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch.distributed as dist
from torch import nn

from vergence.methods import collectives
from vergence.platform.evaluate.config import MonitorConfig
from vergence.platform.evaluate.knn import knn_predict
from vergence.platform.evaluate.spread import effective_rank, embedding_std
from vergence.platform.evaluate.sweep import Sweep
from vergence.platform.evaluate.zero_shot import ZeroShot

FEW = 10  # samples below which neither spread nor rank says anything


class Monitor:
    """Evaluates an encoder on the samples of a sweep, the holdout; every rank embeds its part. Collective."""

    def __init__(self, config: MonitorConfig, holdout: Sweep, zero_shot: ZeroShot | None = None) -> None:
        self.config, self.holdout, self.zero_shot = config, holdout, zero_shot

    def __call__(
        self, encoder: nn.Module, autocast: Callable[[], AbstractContextManager[Any]]
    ) -> dict[str, float]:
        """{h_std, h_effective_rank, holdout, holdout_bad, holdout_unlabelled, knn, zero_shot}. The same on every rank.

        holdout: samples that were embedded; holdout_bad: those that cannot be read. Empty if none can be. The last three
        only where the set has classes: knn is measured on the samples that have one, if they are two; and zero_shot, if
        the method reads the names of the classes.
        """
        own = [(ids.cpu().numpy(), h.cpu().numpy()) for ids, h in self.holdout(encoder, autocast)]
        everyone = _gather((own, self.holdout.num_bad))
        parts = [part for theirs, _ in everyone for part in theirs]
        if not parts:
            return {}
        ids, features = (np.concatenate(arrays) for arrays in zip(*parts))
        order = np.argsort(ids)
        ids, features = ids[order], features[order]
        metrics = {
            "h_std": embedding_std(features),
            "h_effective_rank": effective_rank(features),
            "holdout": len(features),
            "holdout_bad": sum(num_bad for _, num_bad in everyone),
        }
        labels = self.holdout.index.labels(ids)
        if labels is not None:
            metrics["holdout_unlabelled"] = int((labels < 0).sum())
            features, labels = features[labels >= 0], labels[labels >= 0]
            if len(labels) > 1:
                metrics["knn"] = self._knn(features, labels)
                if self.zero_shot is not None:
                    metrics["zero_shot"] = float((self.zero_shot(features, autocast) == labels).mean())
        return metrics

    def _knn(self, features: np.ndarray, labels: np.ndarray) -> float:
        k, temperature = self.config.k, self.config.temperature
        predicted = knn_predict(features, labels, features, k=k, temperature=temperature, exclude_self=True)
        return float((np.asarray(predicted) == labels).mean())


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
    if not collectives.is_distributed():
        return [value]
    values: list[Any] = [None] * collectives.world_size()
    dist.all_gather_object(values, value)
    return values
