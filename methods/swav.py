"""SwAV: predict the cluster of one's own other view, with clusters found online and used equally often.

Caron et al. 2020, arXiv:2006.09882, eq. 1-5 and Algorithm 1. With unit embeddings z, unit prototypes c_k, and codes q^t
of view t by Sinkhorn from scores over all ranks:
    l(z^s, q^t) = -sum_k q^t_k log p^s_k,   p^s_k = softmax_k(z^s.c_k / T)                      (eq. 2)
    L = mean over the two full-size views t, over all other views s, small crops too, and over images.
Codes have no gradient. A small batch balances them together with those of earlier embeddings, a queue for each
full-size view (section 4, "working with small batches"); only the batch's own codes are predicted.
The prototypes of the first epoch stand still by the recipe: optim.groups [{kinds: [prototype], frozen_until: 1}].

Tune first: epsilon (0.03 if the loss stays at ln K), prototypes (about as many as images in a batch without a
queue), how long they stand still.

Shape suffixes: b = images on this rank, v = views, the two full-size ones first, d = embed_dim, k = prototypes.
"""

from typing import ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import BaseModel, Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor, nn

from . import collectives
from .method import About, Batch, DataFacts, Encoder, Method, Needs, ViewRule
from .parts.backbones import ZeroInit
from .parts.forwarding import VIEW_FORWARD, ViewForward, embed_views
from .parts.heads import mlp
from .parts.multi_crop import directed
from .parts.norms import NORM, NormName
from .parts.precision import full
from .parts.prototypes import Prototypes, cross_entropies, use
from .parts.queue import Queue
from .parts.sinkhorn import sinkhorn
from .schedule import Positive, scheduled

CODED = 2  # views that are given codes: the full-size ones


class SwAVConfig(BaseModel, frozen=True, extra="forbid", strict=True):
    zero_init_residual: ClassVar[ZeroInit] = "none"

    name: Literal["swav"] = "swav"
    hidden_dim: PositiveInt = Field(2048, description="Hidden width of the projector.")
    embed_dim: PositiveInt = Field(128, description="Width of embeddings and prototypes.")
    prototypes: int = Field(3000, ge=2, description="K, the number of prototypes.")
    temperature: Positive = Field(
        0.1, description="T; scores are divided by it before the softmax; a number or a schedule."
    )
    epsilon: PositiveFloat = Field(
        0.05, description="Entropy of the codes; at a loss that stays at ln K the authors try 0.03."
    )
    iterations: PositiveInt = Field(3, description="Rounds of Sinkhorn.")
    hard_codes: bool = Field(False, description="Codes one-hot at their largest entry.")
    queue_size: NonNegativeInt = Field(
        0, description="Earlier embeddings of each full-size view that codes are balanced with; 0: none."
    )
    queue_from: NonNegativeFloat = Field(
        15.0, description="Epochs before the queue is filled; it is used once it is full."
    )
    projector_norm: NormName = Field("batch", description=NORM)
    view_forward: ViewForward = Field("joint", description=VIEW_FORWARD)


class Embeddings(NamedTuple):
    z_bvd: Tensor  # projector output, not normalised
    scores_bvk: Tensor  # cosines to the prototypes, fp32


class Losses(NamedTuple):
    loss: Tensor
    accuracy: Tensor  # share of predictions whose largest entry is that of the code
    prototype_use: Tensor  # entropy of the mean prediction / ln K; 1: all are used alike, 0: one is
    prototype_norm: Tensor  # mean length of the stored rows; their directions alone act


class SwAV(Method[SwAVConfig, Embeddings, tuple[()]]):
    """Encoder, projector, prototypes, and a queue of embeddings for each full-size view."""

    about: ClassVar[About] = About(2020, "clustering", "2 views and any number of small ones; prototypes")
    needs: ClassVar[Needs] = Needs(ViewRule(CODED, CODED, small=True))

    def __init__(self, config: SwAVConfig, encoder: Encoder, data: DataFacts) -> None:
        super().__init__(config, encoder, data)
        self.temperature = scheduled(config.temperature)
        dims = (encoder.dim, config.hidden_dim, config.embed_dim)
        self.projector = mlp(dims, norm=config.projector_norm, hidden_bias=True, last_bias=True)
        self.prototypes = Prototypes(config.embed_dim, config.prototypes)
        self.queues = nn.ModuleList(
            Queue(config.queue_size, config.embed_dim) for _ in range(CODED if config.queue_size else 0)
        )
        self.register_buffer("num_queued", torch.zeros((), dtype=torch.int64))
        self.num_queued: Tensor

    def forward(self, batch: Batch) -> Embeddings:
        """Embeddings of the views, each (b, 3, H, W), and their scores."""
        z_bvd = embed_views(self.encoder, self.projector, batch.views, self.config.view_forward)
        return Embeddings(z_bvd, self.prototypes(z_bvd))

    def criterion(self, out: Embeddings, targets: tuple[()], batch: Batch) -> Losses:
        """Swapped prediction over this rank's b images (eq. 1 and 2); collective."""
        scores_bvk = full(out.scores_bvk)
        codes_btk = self._codes(scores_bvk.detach())
        log_p_bvk = (scores_bvk / self.temperature.at(batch.progress, self.data.epochs)).log_softmax(dim=-1)
        loss = cross_entropies(codes_btk, log_p_bvk).mean()
        with torch.no_grad():
            t, s = (list(views) for views in zip(*directed(CODED, log_p_bvk.shape[1])))
            hit = (codes_btk.argmax(-1)[:, t] == log_p_bvk.argmax(-1)[:, s]).to(log_p_bvk.dtype)
            norm = self.prototypes.weight.norm(dim=1).mean()
        return Losses(loss, hit.mean(), use(log_p_bvk[:, :CODED].flatten(0, 1).exp()), norm)

    @torch.no_grad()
    def _codes(self, scores_bvk: Tensor) -> Tensor:
        """(b, 2, k): codes of the full-size views, balanced over all ranks and the queues (eq. 3-5)."""
        config, codes = self.config, []
        for t in range(CODED):
            own = scores_bvk[:, t]
            earlier = self._earlier_scores(t).to(own.dtype)
            q = sinkhorn(
                torch.cat([earlier, own]),
                epsilon=config.epsilon,
                iterations=config.iterations,
                hard=config.hard_codes,
            )
            codes.append(q[len(earlier) :])
        return torch.stack(codes, dim=1)

    def _earlier_scores(self, t: int) -> Tensor:
        """(rows, k): the queue of view t against the prototypes as they are; each rank scores its part of the rows."""
        if not self.queues or self.num_queued < self.config.queue_size:
            return self.prototypes.weight.new_zeros(0, self.config.prototypes)
        queue: Queue = self.queues[t]  # type: ignore[assignment]
        part = queue.keys.tensor_split(collectives.world_size())[collectives.rank()]
        scores: Tensor = self.prototypes(part)
        return scores

    @torch.no_grad()
    def after_step(self, out: Embeddings, targets: tuple[()], batch: Batch) -> None:
        """Queue the embeddings of all ranks; they were scored before."""
        if not self.queues or batch.progress * self.data.epochs < self.config.queue_from:
            return
        z_btd = collectives.gather(F.normalize(full(out.z_bvd[:, :CODED]), dim=-1))
        for t, queue in enumerate(self.queues):
            queue.enqueue(z_btd[:, t])  # type: ignore[operator]
        self.num_queued.add_(len(z_btd)).clamp_(max=self.config.queue_size)
