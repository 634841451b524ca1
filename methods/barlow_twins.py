"""Barlow Twins: the cross-correlation of the two views' features over the batch should be the identity.

Zbontar et al. 2021, arXiv:2103.03230, eq. 1-2 and Algorithm 1. With z standardised per dimension over the
global batch of B images (biased variance, each view its own):
    C = z1^T z2 / B,    l = sum_j (1 - C_jj)^2 + lambda * sum_{j != k} C_jk^2.
The paper has lambda = 0.005, the official code 0.0051. With redundancy_weight = mean it is 1 / (d - 1): l is then d
times the sum of two means, over the diagonal and off it (of unknown merit: the paper swept 0.002 to 0.02).
With more views: the mean of l over the pairs of a full-size view and any other one.

Tune first: learning rate, then redundancy_weight and embed_dim together.

Shape suffixes: b = images on this rank, v = views, full-size ones first, d = embed_dim.
"""

from typing import ClassVar, Literal, NamedTuple

import torch
from pydantic import BaseModel, Field, NonNegativeFloat, PositiveInt
from torch import Tensor

from . import collectives
from .method import About, Batch, DataFacts, Encoder, Method, Needs, at_least
from .parts.backbones import ZeroInit
from .parts.forwarding import VIEW_FORWARD, ViewForward, embed_views
from .parts.heads import mlp
from .parts.multi_crop import unordered
from .parts.norms import NORM, NormName
from .parts.precision import full

EPSILON = 1e-5  # of the authors' batch norm, which standardises z


class BarlowTwinsConfig(BaseModel, frozen=True, extra="forbid", strict=True):
    zero_init_residual: ClassVar[ZeroInit] = "all"

    name: Literal["barlow_twins"] = "barlow_twins"
    hidden_dim: PositiveInt = Field(8192, description="Width of the projector's two hidden layers.")
    embed_dim: PositiveInt = Field(8192, description="Width of the embedding.")
    redundancy_weight: NonNegativeFloat | Literal["mean"] = Field(
        5.1e-3,
        description="lambda, of the off-diagonal term; mean: 1 / (d - 1), so that both terms are d times a mean.",
    )
    projector_norm: NormName = Field("batch", description=NORM)
    view_forward: ViewForward = Field("per_view", description=VIEW_FORWARD)


class Embeddings(NamedTuple):
    z_bvd: Tensor  # projector output, not standardised


class Losses(NamedTuple):
    loss: Tensor
    invariance: Tensor  # first term
    redundancy: Tensor  # second term, lambda included
    positive_correlation: Tensor  # mean of the diagonal of C


class BarlowTwins(Method[BarlowTwinsConfig, Embeddings, tuple[()]]):
    """Encoder and three-layer projector."""

    about: ClassVar[About] = About(2021, "redundancy reduction", "2 or more views")
    needs: ClassVar[Needs] = Needs(at_least(2, small=True))

    def __init__(self, config: BarlowTwinsConfig, encoder: Encoder, data: DataFacts) -> None:
        super().__init__(config, encoder, data)
        dims = (encoder.dim, config.hidden_dim, config.hidden_dim, config.embed_dim)
        self.projector = mlp(dims, norm=config.projector_norm, hidden_bias=False, last_bias=False)

    def forward(self, batch: Batch) -> Embeddings:
        """Embed the views, each (b, 3, H, W)."""
        return Embeddings(embed_views(self.encoder, self.projector, batch.views, self.config.view_forward))

    def criterion(self, out: Embeddings, targets: tuple[()], batch: Batch) -> Losses:
        """The loss of the global batch, the same on every rank; collective."""
        z_bvd = full(out.z_bvd)
        B = len(z_bvd) * collectives.world_size()
        z_bvd = z_bvd - collectives.sum(z_bvd.sum(dim=0)) / B
        variance_vd = collectives.sum(z_bvd.square().sum(dim=0)) / B
        z = (z_bvd / (variance_vd + EPSILON).sqrt()).unbind(dim=1)
        pairs = unordered(batch.num_large, len(z))
        terms = torch.stack([self._terms(collectives.sum(z[t].T @ z[s]) / B) for t, s in pairs])
        invariance, redundancy, correlation = terms.mean(dim=0)
        loss = invariance + redundancy
        return Losses(loss, invariance.detach(), redundancy.detach(), correlation.detach())

    def _terms(self, c: Tensor) -> Tensor:
        """First and second term of the loss and mean of the diagonal, (3,), of one cross-correlation (d, d)."""
        d = len(c)
        on_diag = c.diagonal()
        off_diag = c.flatten()[:-1].view(d - 1, d + 1)[:, 1:]  # each diagonal entry starts a row: drop it
        weight = self.config.redundancy_weight
        redundancy = (d * off_diag.square().mean()) if weight == "mean" else weight * off_diag.square().sum()
        return torch.stack([(1 - on_diag).square().sum(), redundancy, on_diag.mean()])
