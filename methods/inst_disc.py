"""InstDisc: every image is a class of its own; a bank of earlier embeddings takes the place of the classes' weights.

Wu et al. 2018, arXiv:1805.01978, eq. 2-10. With the unit embedding u_i of image i, the bank's rows v_j of all n images:
    P(j|u) = exp(v_j.u / T) / Z
    NCE (eq. 5-7), m rows j drawn uniformly:  l = -log P_i / (P_i + m / n) - sum_j log (m / n) / (P_j + m / n)
    softmax:  l = -log exp(v_i.u / T) / sum_j exp(v_j.u / T), over all rows, or over row i and m drawn ones
    proximal term (eq. 10): + proximal_weight * |u_i - v_i|^2;    mean over images.
Z is n times the mean of exp(v_j.u / T) in the first batch, then constant (eq. 8). After each step
    v_i <- hat(momentum * v_i + (1 - momentum) * u_i).
The official code mixes rows instead of the proximal term; on CIFAR-10 it takes the softmax over all rows. Defaults of
the official code. With more views each is an anchor, the first one writes the bank. n counts held-out images too.

Tune first: temperature and learning rate; rows are an epoch old, so that it wants 20 epochs or more.

Shape suffixes: b = images on this rank, v = views, d = embed_dim, m = num_negatives.
"""

import math
from typing import ClassVar, Literal, NamedTuple, Self

import torch
import torch.nn.functional as F
from pydantic import BaseModel, Field, NonNegativeFloat, PositiveInt, model_validator
from torch import Tensor, nn

from . import collectives
from .method import About, Batch, DataFacts, Encoder, Method, Needs, at_least
from .parts.backbones import ZeroInit
from .parts.bank import Bank
from .parts.contrast import info_nce, nce, scores
from .parts.forwarding import embed_views
from .parts.precision import full
from .schedule import Positive, Share, scheduled


class InstDiscConfig(BaseModel, frozen=True, extra="forbid", strict=True):
    zero_init_residual: ClassVar[ZeroInit] = "none"

    name: Literal["inst_disc"] = "inst_disc"
    embed_dim: PositiveInt = Field(128, description="Width of the embedding.")
    temperature: Positive = Field(
        0.07, description="T; cosine similarities are divided by it; a number or a schedule."
    )
    form: Literal["nce", "softmax"] = Field("nce", description="Noise-contrastive estimation, or softmax.")
    num_negatives: PositiveInt | Literal["all"] = Field(
        4096, description="m, rows drawn for each image; all: the whole bank (softmax)."
    )
    momentum: Share = Field(0.5, description="Of a row when it is mixed with the new embedding.")
    proximal_weight: NonNegativeFloat = Field(0.0, description="lambda of the proximal term.")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.form == "nce" and self.num_negatives == "all":
            raise ValueError("num_negatives all goes with form softmax: nce compares with drawn rows")
        return self


class Embeddings(NamedTuple):
    z_bvd: Tensor  # projector output, not normalised


class Losses(NamedTuple):
    loss: Tensor
    accuracy: Tensor  # share of anchors nearer to their own row than to all candidates
    positive_cosine: Tensor  # of anchors with their rows


class InstDisc(Method[InstDiscConfig, Embeddings, tuple[()]]):
    """Encoder, a linear projector, and the bank."""

    about: ClassVar[About] = About(2018, "instance contrast", "1 or more views; bank by sample id")
    needs: ClassVar[Needs] = Needs(at_least(1, small=True))

    normaliser: Tensor  # 0-d, Z of eq. 8; 0 before the first step

    def __init__(self, config: InstDiscConfig, encoder: Encoder, data: DataFacts) -> None:
        super().__init__(config, encoder, data)
        self.temperature, self.momentum = scheduled(config.temperature), scheduled(config.momentum)
        self.projector = nn.Linear(encoder.dim, config.embed_dim)
        self.bank = Bank(data.num_ids, config.embed_dim)
        self.register_buffer("normaliser", torch.zeros(()))

    def forward(self, batch: Batch) -> Embeddings:
        """Embed the views, each (b, 3, H, W)."""
        return Embeddings(embed_views(self.encoder, self.projector, batch.views, "per_view"))

    def criterion(self, out: Embeddings, targets: tuple[()], batch: Batch) -> Losses:
        """Mean over this rank's anchors against the bank as it was before this batch; collective."""
        v = out.z_bvd.shape[1]
        u = F.normalize(full(out.z_bvd), dim=-1).flatten(0, 1)  # (b v, d)
        own = batch.ids.repeat_interleave(v)
        rows = self.bank.rows[own]
        logits, positive = self._logits(u, own, batch)
        loss, accuracy = info_nce(logits, positive)
        if self.config.form == "nce":
            z = torch.where(self.normaliser > 0, self.normaliser, self._estimate(logits))
            loss = nce(logits, z.log(), len(self.bank.rows))
        if self.config.proximal_weight:
            loss = loss + self.config.proximal_weight * (u - rows).square().sum(dim=1).mean()
        return Losses(loss, accuracy, F.cosine_similarity(u, rows).detach().mean())

    @torch.no_grad()
    def after_step(self, out: Embeddings, targets: tuple[()], batch: Batch) -> None:
        """Keep Z of the first step, then mix the first view's embeddings into the rows of all ranks' images."""
        u = F.normalize(full(out.z_bvd), dim=-1)
        if self.config.form == "nce" and self.normaliser == 0:
            own = batch.ids.repeat_interleave(u.shape[1])
            self.normaliser.copy_(self._estimate(self._logits(u.flatten(0, 1), own, batch)[0]))
        self.bank.update(batch.ids, u[:, 0], self.momentum.at(batch.progress, self.data.epochs))

    def _logits(self, u: Tensor, own: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Scores of anchors (a, d), whose images are `own` (a,), with rows, and the column of each one's own row."""
        T, m = self.temperature.at(batch.progress, self.data.epochs), self.config.num_negatives
        if m == "all":
            return u @ self.bank.rows.T / T, own
        drawn = self.bank.rows[self.bank.draw(own, m, batch.progress)]  # (a, m, d)
        return scores(u, self.bank.rows[own], drawn, T), torch.zeros_like(own)

    @torch.no_grad()
    def _estimate(self, logits: Tensor) -> Tensor:
        """Z of eq. 8 from the scores of all ranks, 0-d."""
        log_mean = logits.flatten().logsumexp(dim=0) - math.log(logits.numel())
        return len(self.bank.rows) * collectives.mean(log_mean.exp())
