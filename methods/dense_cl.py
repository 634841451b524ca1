"""DenseCL: MoCo v2, and beside it the same contrast for every place of the image.

Wang et al. 2020, arXiv:2011.09157, eq. 1-4. Of view 0 and view 1 let F_q, F_k be the backbone's features on a grid of S
cells, r_q, r_k the unit dense projections of these cells. Cell i of view 0 belongs to the cell of view 1
    c(i) = argmax_j cos(F_q[i], F_k[j])                                                                (eq. 4)
    l(i) = -log( exp(r_q[i].r_k[c(i)] / T) / ( exp(r_q[i].r_k[c(i)] / T) + sum_n exp(r_q[i].n / T) ) ) (eq. 2)
    L = (1 - dense_weight) L_g + dense_weight L_d,  L_d the mean of l over cells and images            (eq. 3)
L_g is MoCo v2's loss (moco_v2.py). The dense queue's rows n are one a key image: the unit mean of its dense projections,
which are not normalised before. More views, small crops too, give global queries only. Defaults of the official
code: T = 0.2, m = 0.999, K = 65536, dense_weight 0.5, one cell for each of the backbone's.

Tune first: temperature and dense_weight; it wants some cells: with an image of 32 pixels, a 3x3 stem (4 x 4 cells). In
short runs queue_size (a tenth of the images at most) and momentum, and dense_weight 0 in the first epoch.

Shape suffixes: b = images on this rank, v = queries of an image, s = cells (S), c = features of a cell, d = embed_dim.
"""

from typing import ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from . import collectives
from .method import About, Batch, DataFacts, Encoder, Method, Needs, at_least
from .moco_v2 import MoCoHead
from .parts import ema
from .parts.contrast import against
from .parts.forwarding import embed_views
from .parts.heads import mlp
from .parts.precision import full
from .parts.queue import Queue
from .schedule import Share, scheduled


class DenseCLConfig(MoCoHead, frozen=True):
    name: Literal["dense_cl"] = "dense_cl"
    dense_weight: Share = Field(
        0.5, description="lambda, the dense term's part of the loss; a number or a schedule."
    )


class Embeddings(NamedTuple):
    q_bvd: Tensor  # global projections of every view but view 1, not normalised
    r_bsd: Tensor  # dense projections of view 0, not normalised
    f_bsc: Tensor  # view 0's features, without gradient


class Targets(NamedTuple):
    k_bd: Tensor  # unit global keys of view 1
    r_bsd: Tensor  # unit dense keys of view 1
    n_bd: Tensor  # unit means of its dense projections: rows for the dense queue
    f_bsc: Tensor  # its features


class Losses(NamedTuple):
    loss: Tensor
    accuracy: Tensor  # share of global queries that find their key among 1 + K candidates
    dense_accuracy: Tensor  # of dense ones
    positive_cosine: Tensor
    dense_loss: Tensor


class DenseCL(Method[DenseCLConfig, Embeddings, Targets]):
    """Student (encoder, projector, dense projector), teacher, and a queue for each of the two projectors."""

    about: ClassVar[About] = About(2020, "instance contrast", "2 or more views; two queues, teacher, a grid")
    needs: ClassVar[Needs] = Needs(at_least(2, small=True), shuffle=True)

    def __init__(self, config: DenseCLConfig, encoder: Encoder, data: DataFacts) -> None:
        super().__init__(config, encoder, data)
        self.momentum, self.temperature = scheduled(config.momentum), scheduled(config.temperature)
        self.dense_weight = scheduled(config.dense_weight)
        dims = (encoder.dim, config.hidden_dim, config.embed_dim)
        self.projector = mlp(dims, norm=config.projector_norm, hidden_bias=True, last_bias=True)
        self.dense_projector = mlp(dims, norm="none", hidden_bias=True, last_bias=True)  # 1x1 convolutions
        for layer in self.projector:
            if isinstance(layer, nn.Linear):
                nn.init.kaiming_normal_(layer.weight, mode="fan_in", nonlinearity="relu")
                nn.init.zeros_(layer.bias)
        self.teacher = ema.teacher_of(self._student())
        self.queue = Queue(config.queue_size, config.embed_dim)
        self.dense_queue = Queue(config.queue_size, config.embed_dim)

    def _student(self) -> nn.ModuleList:
        return nn.ModuleList([self.encoder, self.projector, self.dense_projector])

    def forward(self, batch: Batch) -> Embeddings:
        """Queries of all views but view 1, each (b, 3, H, W), and those of view 0's cells."""
        view_0, _, *others = batch.views
        features = self.encoder.features(view_0)
        f_bsc = self.encoder.cells(features)
        q_bvd = self.projector(self.encoder.pool(features))[:, None]
        if others:
            rest = embed_views(self.encoder, self.projector, others, self.config.view_forward)
            q_bvd = torch.cat([q_bvd, rest], dim=1)
        return Embeddings(q_bvd, self.dense_projector(f_bsc), f_bsc.detach())

    @torch.no_grad()
    def targets(self, batch: Batch) -> Targets:
        """Keys of view 1 and of its cells, from shuffled images: else the norm's groups would tell which key is whose."""
        encoder, projector, dense_projector = self.teacher
        assert isinstance(encoder, Encoder)
        view_1, order = batch.views[1], batch.shuffle
        features = encoder.features(view_1 if order is None else view_1[order])
        f_bsc = encoder.cells(features)
        k_bd, r_bsd = full(projector(encoder.pool(features))), full(dense_projector(f_bsc))
        keys = Targets(
            F.normalize(k_bd, dim=-1),
            F.normalize(r_bsd, dim=-1),
            F.normalize(r_bsd.mean(dim=1), dim=-1),
            f_bsc,
        )
        return keys if order is None else Targets(*(x[order.argsort()] for x in keys))

    def criterion(self, out: Embeddings, targets: Targets, batch: Batch) -> Losses:
        """Both contrasts of this rank's queries with the queues as they were before this batch (eq. 3)."""
        temperature = self.temperature.at(batch.progress, self.data.epochs)
        dense_weight = self.dense_weight.at(batch.progress, self.data.epochs)
        q = F.normalize(full(out.q_bvd), dim=-1)
        k = targets.k_bd[:, None].expand_as(q).detach()
        loss, accuracy = against(q.flatten(0, 1), k.flatten(0, 1), self.queue.keys, temperature)

        r = F.normalize(full(out.r_bsd), dim=-1)
        c_bs = correspondence(full(out.f_bsc), full(targets.f_bsc))
        positives = targets.r_bsd.detach().gather(1, c_bs[..., None].expand_as(r))
        dense_loss, dense_accuracy = against(
            r.flatten(0, 1), positives.flatten(0, 1), self.dense_queue.keys, temperature
        )
        both = (1 - dense_weight) * loss + dense_weight * dense_loss
        return Losses(
            both, accuracy, dense_accuracy, (q * k).sum(dim=-1).detach().mean(), dense_loss.detach()
        )

    @torch.no_grad()
    def after_step(self, out: Embeddings, targets: Targets, batch: Batch) -> None:
        """Move the teacher, then enqueue both kinds of keys of all ranks in the order of the global batch."""
        ema.update(self.teacher, self._student(), self.momentum.at(batch.progress, self.data.epochs))
        self.queue.enqueue(collectives.gather(targets.k_bd))
        self.dense_queue.enqueue(collectives.gather(targets.n_bd))


@torch.no_grad()
def correspondence(f_q: Tensor, f_k: Tensor) -> Tensor:
    """Eq. 4: for each cell of the first image the most similar one of the second, (b, S) int64; f: (b, S, C)."""
    return (F.normalize(f_q, dim=-1) @ F.normalize(f_k, dim=-1).mT).argmax(dim=2)
