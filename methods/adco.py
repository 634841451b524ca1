"""AdCo: the negatives are vectors that are learned too, against the encoder: they climb the loss that it descends.

Hu et al. 2020, arXiv:2011.08435, eq. 1-6. With unit queries q_i (student, view 0), unit keys k_i (teacher, view 1) of the
global batch and unit negatives hat(w_j):
    L = mean_i -log( exp(q_i.k_i / T) / ( sum_{i'} exp(q_i.k_i' / T) + sum_j exp(q_i.hat(w_j) / T) ) )
    p_ij = the share of hat(w_j) in that sum, at temperature adversary_temperature (T_W)
    dL/dw_j = mean_i p_ij ( q_i - (q_i.hat(w_j)) hat(w_j) ) / (T_W |w_j|)                              (eq. 6)
After the student's step w goes up: v <- 0.9 v - dL/dw + adversary_decay w,  w <- w - adversary_lr v; w is never
normalised itself. First of all the negatives are filled with keys, step by step, while the student learns by its own key
and these negatives only; when they are full the teacher starts anew from the student. All as in the official code.
symmetric: view 1 asks for view 0's key too, and L is the mean of both. With small crops L is the mean over the
queries (the code sums them).

Tune first: temperature, adversary_lr and num_negatives (in short runs a few times the batch), then momentum.

Shape suffixes: b = images on this rank, B = b * world_size, v = queries, t = keys of an image,
d = embed_dim, K = num_negatives.
"""

from typing import ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import BaseModel, Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn

from . import collectives
from .method import About, Batch, DataFacts, Encoder, Method, Needs, at_least
from .parts import ema
from .parts.backbones import ZeroInit
from .parts.contrast import info_nce
from .parts.forwarding import embed_views
from .parts.heads import mlp
from .parts.precision import full
from .schedule import Positive, Share, scheduled

VELOCITY_MOMENTUM = 0.9


class AdCoConfig(BaseModel, frozen=True, extra="forbid", strict=True):
    zero_init_residual: ClassVar[ZeroInit] = "none"

    name: Literal["adco"] = "adco"
    hidden_dim: PositiveInt = Field(2048, description="Hidden width of the projector.")
    embed_dim: PositiveInt = Field(128, description="Width of queries, keys and negatives.")
    temperature: Positive = Field(
        0.12, description="T; cosine similarities are divided by it; a number or a schedule."
    )
    momentum: Share = Field(
        0.999, description="m of teacher = m * teacher + (1 - m) * student; a number or a schedule."
    )
    num_negatives: PositiveInt = Field(65536, description="K, learned vectors.")
    adversary_temperature: PositiveFloat = Field(0.02, description="T_W, of the negatives' own gradient.")
    adversary_lr: NonNegativeFloat = Field(3.0, description="Learning rate of the negatives, constant.")
    adversary_decay: NonNegativeFloat = Field(1e-4, description="Weight decay of the negatives.")
    symmetric: bool = Field(False, description="Queries and keys of both full-size views.")
    view_forward: Literal["per_view"] = Field("per_view", description="Each network sees one view at a time.")


class Embeddings(NamedTuple):
    q_bvd: Tensor  # projector output of every view (but view 1, unless symmetric), not normalised


class Targets(NamedTuple):
    k_btd: Tensor  # unit keys of view 1; symmetric: of view 0 and view 1


class Losses(NamedTuple):
    loss: Tensor
    accuracy: Tensor  # share of queries that find their key among B + K candidates
    positive_cosine: Tensor


class AdCo(Method[AdCoConfig, Embeddings, Targets]):
    """Student (encoder, projector), teacher, and the negatives with their velocity."""

    about: ClassVar[About] = About(2020, "instance contrast", "2 or more views; learned negatives, teacher")
    needs: ClassVar[Needs] = Needs(at_least(2, small=True), shuffle=True)

    negatives: Tensor  # (K, d) w
    velocity: Tensor  # (K, d) v
    filled: Tensor  # 0-d int64: how many rows of `negatives` have been keys

    def __init__(self, config: AdCoConfig, encoder: Encoder, data: DataFacts) -> None:
        super().__init__(config, encoder, data)
        self.momentum, self.temperature = scheduled(config.momentum), scheduled(config.temperature)
        dims = (encoder.dim, config.hidden_dim, config.embed_dim)
        self.projector = mlp(dims, norm="none", hidden_bias=True, last_bias=True)
        self.teacher = ema.teacher_of(nn.Sequential(encoder, self.projector))
        self.register_buffer("negatives", torch.randn(config.num_negatives, config.embed_dim))
        self.register_buffer("velocity", torch.zeros_like(self.negatives))
        self.register_buffer("filled", torch.zeros((), dtype=torch.int64))

    def forward(self, batch: Batch) -> Embeddings:
        """Queries of the views, each (b, 3, H, W)."""
        views = list(batch.views)
        if not self.config.symmetric:
            del views[1]
        return Embeddings(embed_views(self.encoder, self.projector, views, self.config.view_forward))

    @torch.no_grad()
    def targets(self, batch: Batch) -> Targets:
        """Keys from shuffled images: else the norm's groups would tell which key is whose."""
        order, keys = batch.shuffle, []
        for view in batch.views[0 if self.config.symmetric else 1 : 2]:
            k = self.teacher(view if order is None else view[order])
            keys.append(k if order is None else k[order.argsort()])
        return Targets(F.normalize(full(torch.stack(keys, dim=1)), dim=-1))

    def criterion(self, out: Embeddings, targets: Targets, batch: Batch) -> Losses:
        """InfoNCE of this rank's queries against the negatives as they were before this batch; collective."""
        temperature = self.temperature.at(batch.progress, self.data.epochs)
        q_bvd, k_btd = F.normalize(full(out.q_bvd), dim=-1), targets.k_btd.detach()
        pairs = self._pairs(q_bvd.shape[1])
        terms = [info_nce(*self._logits(q_bvd[:, s], k_btd[:, t], temperature)) for s, t in pairs]
        loss, accuracy = (torch.stack(each).mean() for each in zip(*terms, strict=True))
        cosine = torch.stack([(q_bvd[:, s] * k_btd[:, t]).sum(dim=1) for s, t in pairs]).mean()
        return Losses(loss, accuracy, cosine.detach())

    @torch.no_grad()
    def after_step(self, out: Embeddings, targets: Targets, batch: Batch) -> None:
        """Move the teacher; then let the negatives climb, or fill them with the keys of all ranks."""
        student = nn.Sequential(self.encoder, self.projector)
        ema.update(self.teacher, student, self.momentum.at(batch.progress, self.data.epochs))
        if self._full():
            gradient = self._gradient(F.normalize(full(out.q_bvd), dim=-1), targets.k_btd)
            descent = self.config.adversary_decay * self.negatives - gradient
            self.velocity.mul_(VELOCITY_MOMENTUM).add_(descent)
            self.negatives.sub_(self.config.adversary_lr * self.velocity)
            return
        keys = collectives.gather(targets.k_btd[:, -1])
        start = int(self.filled)
        rows = keys[: len(self.negatives) - start].to(self.negatives.dtype)
        self.negatives[start : start + len(rows)] = rows
        self.filled.add_(len(rows))
        if self._full():
            ema.update(self.teacher, student, 0.0)

    def _full(self) -> bool:
        return int(self.filled) == len(self.negatives)

    def _pairs(self, queries: int) -> list[tuple[int, int]]:
        """(query, key) of one image."""
        if not self.config.symmetric:
            return [(s, 0) for s in range(queries)]
        return [(s, t) for t in (0, 1) for s in range(queries) if s != t]

    def _logits(self, q_bd: Tensor, k_bd: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        """Scores (b, B + K), while filling (b, 1 + K), and the column of each query's own key."""
        place = torch.arange(len(q_bd), device=q_bd.device)
        if self._full():
            with_keys, own = q_bd @ collectives.gather(k_bd).T, place + collectives.rank() * len(q_bd)
        else:
            with_keys, own = (q_bd * k_bd).sum(dim=1, keepdim=True), torch.zeros_like(place)
        return torch.cat([with_keys, q_bd @ F.normalize(self.negatives, dim=1).T], dim=1) / temperature, own

    def _gradient(self, q_bvd: Tensor, k_btd: Tensor) -> Tensor:
        """dL/dw at adversary_temperature over all ranks' queries, (K, d) (eq. 6); collective."""
        temperature = self.config.adversary_temperature
        w, total = F.normalize(self.negatives, dim=1), torch.zeros_like(self.negatives)
        pairs = self._pairs(q_bvd.shape[1])
        for s, t in pairs:
            q_bd = q_bvd[:, s]
            logits, _ = self._logits(q_bd, k_btd[:, t], temperature)
            p_bk = logits.softmax(dim=1)[:, -len(w) :]
            along = (p_bk * (q_bd @ w.T)).sum(dim=0)
            total += (p_bk.T @ q_bd - along[:, None] * w) / (len(q_bd) * len(pairs))
        lengths = self.negatives.norm(dim=1, keepdim=True).clamp(min=1e-12)
        return collectives.mean(total / (temperature * lengths))
