"""MoCo v2: find the key of one's own other view among a long queue of older keys.

He et al. 2019, arXiv:1911.05722, Algorithm 1 and eq. 1-2; Chen et al. 2020, arXiv:2003.04297 (MLP head). With
unit vectors q (student, view 0), k (teacher, view 1) and the queue's rows n:
    l = -log( exp(q.k / T) / ( exp(q.k / T) + sum_n exp(q.n / T) ) ),  mean over images.
With more views every one but view 1 gives a query, small crops too, and l is the mean over them.
Query and key encoder are called student and teacher here. The official code moves the teacher before the key
forward; moving it after the optimiser step gives the same sequence, since m is constant and the two start
equal.

Tune first: temperature; in short runs queue_size (a tenth of the images at most) and momentum (its
memory, 1 / (1 - m) steps, a twentieth of the run).

Shape suffixes: b = images on this rank, v = queries of an image, d = embed_dim, K = queue_size.
"""

from typing import ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import BaseModel, Field, PositiveInt
from torch import Tensor, nn

from . import collectives
from .method import About, Batch, DataFacts, Encoder, Method, Needs, at_least
from .parts import ema
from .parts.backbones import ZeroInit
from .parts.contrast import info_nce
from .parts.forwarding import embed_views
from .parts.heads import mlp
from .parts.norms import NORM, NormName
from .parts.precision import full
from .parts.queue import Queue
from .schedule import Positive, Share, scheduled


class MoCoV2Config(BaseModel, frozen=True, extra="forbid", strict=True):
    zero_init_residual: ClassVar[ZeroInit] = "none"

    name: Literal["mocov2"] = "mocov2"
    hidden_dim: PositiveInt = Field(2048, description="Hidden width of the projector.")
    embed_dim: PositiveInt = Field(128, description="Width of queries and keys.")
    temperature: Positive = Field(
        0.2, description="T; cosine similarities are divided by it; a number or a schedule."
    )
    momentum: Share = Field(
        0.999, description="m of teacher = m * teacher + (1 - m) * student; a number or a schedule."
    )
    queue_size: PositiveInt = Field(65536, description="K, the number of negatives.")
    projector_norm: NormName = Field("none", description=NORM)
    view_forward: Literal["per_view"] = Field("per_view", description="Each network sees one view only.")


class Embeddings(NamedTuple):
    q_bvd: Tensor  # projector output of every view but view 1, not normalised


class Targets(NamedTuple):
    k_bd: Tensor  # unit keys, fp32


class Losses(NamedTuple):
    loss: Tensor
    accuracy: Tensor  # share of queries that find their key among 1 + K candidates
    positive_cosine: Tensor


class MoCoV2(Method[MoCoV2Config, Embeddings, Targets]):
    """Student (encoder, projector), teacher, and the queue of keys."""

    about: ClassVar[About] = About(2020, "instance contrast", "2 or more views; queue, teacher")
    needs: ClassVar[Needs] = Needs(at_least(2, small=True), shuffle=True)

    def __init__(self, config: MoCoV2Config, encoder: Encoder, data: DataFacts) -> None:
        super().__init__(config, encoder, data)
        self.momentum, self.temperature = scheduled(config.momentum), scheduled(config.temperature)
        dims = (encoder.dim, config.hidden_dim, config.embed_dim)
        self.projector = mlp(dims, norm=config.projector_norm, hidden_bias=True, last_bias=True)
        self.teacher = ema.teacher_of(nn.Sequential(encoder, self.projector))
        self.queue = Queue(config.queue_size, config.embed_dim)

    def forward(self, batch: Batch) -> Embeddings:
        """Queries of all views but view 1, each (b, 3, H, W)."""
        view_0, _, *others = batch.views
        views = [view_0, *others]
        return Embeddings(embed_views(self.encoder, self.projector, views, self.config.view_forward))

    @torch.no_grad()
    def targets(self, batch: Batch) -> Targets:
        """Keys of view 1, from shuffled images: else the norm's groups would tell which key is whose."""
        view_1 = batch.views[1]
        order = batch.shuffle
        k = self.teacher(view_1 if order is None else view_1[order])
        if order is not None:
            k = k[order.argsort()]
        return Targets(F.normalize(full(k), dim=1))

    def criterion(self, out: Embeddings, targets: Targets, batch: Batch) -> Losses:
        """InfoNCE of this rank's queries against the queue as it was before this batch (eq. 1)."""
        v = out.q_bvd.shape[1]
        q = F.normalize(full(out.q_bvd), dim=-1).flatten(0, 1)  # (b v, d)
        k = targets.k_bd.detach().repeat_interleave(v, dim=0)
        positive = (q * k).sum(dim=1, keepdim=True)  # (b v, 1)
        negative = q @ self.queue.keys.T  # (b v, K)
        temperature = self.temperature.at(batch.progress, self.data.epochs)
        logits = torch.cat([positive, negative], dim=1) / temperature
        first = torch.zeros(len(q), dtype=torch.int64, device=q.device)
        loss, accuracy = info_nce(logits, first)
        return Losses(loss, accuracy, positive.detach().mean())

    @torch.no_grad()
    def after_step(self, out: Embeddings, targets: Targets, batch: Batch) -> None:
        """Move the teacher (eq. 2), then enqueue the keys of all ranks in the order of the global batch."""
        momentum = self.momentum.at(batch.progress, self.data.epochs)
        ema.update(self.teacher, nn.Sequential(self.encoder, self.projector), momentum)
        self.queue.enqueue(collectives.gather(targets.k_bd))
