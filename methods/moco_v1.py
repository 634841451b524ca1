"""MoCo: find the key of one's own other view among a long queue of older keys, by a slowly moving key encoder.

He et al. 2019, arXiv:1911.05722, Algorithm 1 and eq. 1-2. With unit vectors q (student, view 0), k (teacher, view 1)
and the queue's rows n:
    l = -log( exp(q.k / T) / ( exp(q.k / T) + sum_n exp(q.n / T) ) ),  mean over images.
With more views every one but view 1 gives a query, small crops too, and l is the mean over them.
Query and key encoder are called student and teacher here. The official code moves the teacher before the key
forward; moving it after the optimiser step gives the same sequence, since m is constant and the two start
equal. Defaults of the official code: T = 0.07, m = 0.999, K = 65536, a linear head of 128.

Tune first: temperature; in short runs queue_size (a tenth of the images at most) and momentum (its
memory, 1 / (1 - m) steps, a twentieth of the run).

Shape suffixes: b = images on this rank, v = queries of an image, d = embed_dim, K = queue_size.
"""

from abc import abstractmethod
from typing import ClassVar, Literal, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from pydantic import BaseModel, Field, PositiveInt
from torch import Tensor, nn

from . import collectives
from .method import About, Batch, DataFacts, Encoder, Method, Needs, at_least
from .parts import ema
from .parts.backbones import ZeroInit
from .parts.contrast import against
from .parts.forwarding import embed_views
from .parts.precision import full
from .parts.queue import Queue
from .schedule import Positive, Share, scheduled


class MoCoConfig(BaseModel, frozen=True, extra="forbid", strict=True):
    """What every version of MoCo is told."""

    zero_init_residual: ClassVar[ZeroInit] = "none"

    name: str
    embed_dim: PositiveInt = Field(128, description="Width of queries and keys.")
    temperature: Positive = Field(
        0.07, description="T; cosine similarities are divided by it; a number or a schedule."
    )
    momentum: Share = Field(
        0.999, description="m of teacher = m * teacher + (1 - m) * student; a number or a schedule."
    )
    queue_size: PositiveInt = Field(65536, description="K, the number of negatives.")
    view_forward: Literal["per_view"] = Field("per_view", description="Each network sees one view only.")


class MoCoV1Config(MoCoConfig, frozen=True):
    name: Literal["mocov1"] = "mocov1"


Config = TypeVar("Config", bound=MoCoConfig)


class Embeddings(NamedTuple):
    q_bvd: Tensor  # projector output of every view but view 1, not normalised


class Targets(NamedTuple):
    k_bd: Tensor  # unit keys, fp32


class Losses(NamedTuple):
    loss: Tensor
    accuracy: Tensor  # share of queries that find their key among 1 + K candidates
    positive_cosine: Tensor


class MoCo(Method[Config, Embeddings, Targets]):
    """Student (encoder, projector), teacher, and the queue of keys; versions differ in the projector."""

    needs: ClassVar[Needs] = Needs(at_least(2, small=True), shuffle=True)

    def __init__(self, config: Config, encoder: Encoder, data: DataFacts) -> None:
        super().__init__(config, encoder, data)
        self.momentum, self.temperature = scheduled(config.momentum), scheduled(config.temperature)
        self.projector = self.head(encoder.dim)
        self.teacher = ema.teacher_of(nn.Sequential(encoder, self.projector))
        self.queue = Queue(config.queue_size, config.embed_dim)

    @abstractmethod
    def head(self, dim: int) -> nn.Module:
        """The projector, (n, dim) -> (n, d)."""

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
        return self.contrast(out.q_bvd, targets.k_bd, self.queue, batch)

    def contrast(self, q_bvd: Tensor, k_bd: Tensor, queue: Queue, batch: Batch) -> Losses:
        """InfoNCE of queries, not normalised, that are all to find their image's key among those of a queue."""
        v = q_bvd.shape[1]
        q = F.normalize(full(q_bvd), dim=-1).flatten(0, 1)  # (b v, d)
        k = k_bd.detach().repeat_interleave(v, dim=0)
        temperature = self.temperature.at(batch.progress, self.data.epochs)
        loss, accuracy = against(q, k, queue.keys, temperature)
        return Losses(loss, accuracy, (q * k).sum(dim=1).detach().mean())

    @torch.no_grad()
    def after_step(self, out: Embeddings, targets: Targets, batch: Batch) -> None:
        """Move the teacher (eq. 2), then enqueue the keys of all ranks in the order of the global batch."""
        momentum = self.momentum.at(batch.progress, self.data.epochs)
        ema.update(self.teacher, nn.Sequential(self.encoder, self.projector), momentum)
        self.queue.enqueue(collectives.gather(targets.k_bd))


class MoCoV1(MoCo[MoCoV1Config]):
    """With a linear projector."""

    about: ClassVar[About] = About(2019, "instance contrast", "2 or more views; queue, teacher")

    def head(self, dim: int) -> nn.Module:
        return nn.Linear(dim, self.config.embed_dim)
