"""MoCo v2: find the key of one's own other view among a long queue of older keys.

Chen et al. 2020, arXiv:2003.04297: MoCo (moco_v1.py has its algorithm) with an MLP head, stronger augmentation and a
cosine schedule. With unit vectors q (student, view 0), k (teacher, view 1) and the queue's rows n:
    l = -log( exp(q.k / T) / ( exp(q.k / T) + sum_n exp(q.n / T) ) ),  mean over images.
symmetric: view 1 asks for view 0's key too, among older keys of view 0 in a queue of their own, and the loss is the mean of
both directions ("MoCo v2+" of the library solo-learn, arXiv:2108.01775, whose teacher's momentum grows from 0.99 to 0.999).
Defaults of the official code: T = 0.2, m = 0.999, K = 65536, no norm in the head.

Tune first: temperature; in short runs queue_size (a tenth of the images at most) and momentum (its
memory, 1 / (1 - m) steps, a twentieth of the run).
"""

from typing import ClassVar, Literal, NamedTuple

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from . import collectives
from .method import About, Batch, DataFacts, Encoder
from .moco_v1 import Embeddings, Losses, MoCo, MoCoConfig, Targets
from .parts.forwarding import embed_views
from .parts.heads import mlp
from .parts.norms import NORM, NormName
from .parts.queue import Queue
from .schedule import Positive


class MoCoHead(MoCoConfig, frozen=True):
    """What every method with MoCo v2's head and temperature is told."""

    hidden_dim: PositiveInt = Field(2048, description="Hidden width of the projector.")
    temperature: Positive = Field(
        0.2, description="T; cosine similarities are divided by it; a number or a schedule."
    )
    projector_norm: NormName = Field("none", description=NORM)


class MoCoV2Config(MoCoHead, frozen=True):
    name: Literal["mocov2"] = "mocov2"
    symmetric: bool = Field(
        False, description="Queries and keys of both full-size views; a queue of queue_size keys for each."
    )


class BothTargets(NamedTuple):
    k_bd: Tensor  # unit keys of view 1, fp32
    other_bd: Tensor  # of view 0


class MoCoV2(MoCo[MoCoV2Config]):
    """With a projector of two layers; symmetric: with a second queue, of view 0's keys."""

    about: ClassVar[About] = About(2020, "instance contrast", "2 or more views; queue, teacher")

    def __init__(self, config: MoCoV2Config, encoder: Encoder, data: DataFacts) -> None:
        super().__init__(config, encoder, data)
        self.other_queue = Queue(config.queue_size, config.embed_dim) if config.symmetric else None

    def head(self, dim: int) -> nn.Module:
        dims = (dim, self.config.hidden_dim, self.config.embed_dim)
        return mlp(dims, norm=self.config.projector_norm, hidden_bias=True, last_bias=True)

    def forward(self, batch: Batch) -> Embeddings:
        """Queries of all views but view 1, each (b, 3, H, W); symmetric: of all."""
        if self.other_queue is None:
            return super().forward(batch)
        return Embeddings(embed_views(self.encoder, self.projector, batch.views, self.config.view_forward))

    @torch.no_grad()
    def targets(self, batch: Batch) -> Targets | BothTargets:  # type: ignore[override]
        """Keys of view 1, symmetric: and of view 0, from shuffled images."""
        targets = super().targets(batch)
        if self.other_queue is None:
            return targets
        view_0, view_1, *others = batch.views
        return BothTargets(
            targets.k_bd, super().targets(batch._replace(views=[view_1, view_0, *others])).k_bd
        )

    def criterion(self, out: Embeddings, targets: Targets | BothTargets, batch: Batch) -> Losses:
        """InfoNCE of this rank's queries against the queues as they were before this batch."""
        if self.other_queue is None or not isinstance(targets, BothTargets):
            return super().criterion(out, Targets(targets.k_bd), batch)
        ahead = self.contrast(_without(out.q_bvd, 1), targets.k_bd, self.queue, batch)
        back = self.contrast(_without(out.q_bvd, 0), targets.other_bd, self.other_queue, batch)
        return Losses(*((a + b) / 2 for a, b in zip(ahead, back)))

    @torch.no_grad()
    def after_step(self, out: Embeddings, targets: Targets | BothTargets, batch: Batch) -> None:
        """Move the teacher, then enqueue the keys of all ranks in the order of the global batch."""
        super().after_step(out, Targets(targets.k_bd), batch)
        if self.other_queue is not None and isinstance(targets, BothTargets):
            self.other_queue.enqueue(collectives.gather(targets.other_bd))


def _without(q_bvd: Tensor, view: int) -> Tensor:
    return torch.cat([q_bvd[:, :view], q_bvd[:, view + 1 :]], dim=1)
