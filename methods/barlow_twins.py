"""Barlow Twins: the cross-correlation of the two views' features over the batch should be the identity.

Zbontar et al. 2021, arXiv:2103.03230, eq. 1-2 and Algorithm 1. With z standardised per dimension over the
global batch of B images (biased variance, each view its own):
    C = z1^T z2 / B,    l = sum_j (1 - C_jj)^2 + lambda * sum_{j != k} C_jk^2.
Shape suffixes: b = images on this rank, v = views (2), d = embed_dim.
"""

from typing import ClassVar, Literal, NamedTuple

from pydantic import BaseModel, Field, NonNegativeFloat, PositiveInt
from torch import Tensor

from . import collectives
from .method import Batch, DataFacts, Encoder, Method
from .parts.backbones import ZeroInit
from .parts.forwarding import ViewForward, embed_views
from .parts.heads import mlp
from .parts.precision import full

EPSILON = 1e-5  # of the authors' batch norm, which standardises z


class BarlowTwinsConfig(BaseModel, frozen=True, extra="forbid", strict=True):
    zero_init_residual: ClassVar[ZeroInit] = "all"

    name: Literal["barlow_twins"] = "barlow_twins"
    hidden_dim: PositiveInt = Field(8192, description="Width of the projector's two hidden layers.")
    embed_dim: PositiveInt = Field(8192, description="Width of the embedding.")
    redundancy_weight: NonNegativeFloat = Field(5.1e-3, description="lambda, of the off-diagonal term.")
    view_forward: ViewForward = Field(
        "per_view", description="Both views in one forward, or one forward each."
    )


class Embeddings(NamedTuple):
    z_bvd: Tensor  # projector output, not standardised


class Losses(NamedTuple):
    loss: Tensor
    invariance: Tensor  # first term
    redundancy: Tensor  # second term, lambda included
    positive_correlation: Tensor  # mean of the diagonal of C


class BarlowTwins(Method[BarlowTwinsConfig, Embeddings, tuple[()]]):
    """Encoder and three-layer projector."""

    def __init__(self, config: BarlowTwinsConfig, encoder: Encoder, data: DataFacts) -> None:
        super().__init__(config, encoder, data)
        dims = (encoder.dim, config.hidden_dim, config.hidden_dim, config.embed_dim)
        self.projector = mlp(dims, norm=True, hidden_bias=False, last_bias=False)

    def forward(self, batch: Batch) -> Embeddings:
        """Embed two views, each (b, 3, H, W)."""
        f, g = self.encoder, self.projector
        return Embeddings(embed_views(lambda x: g(f(x)), batch.views, self.config.view_forward))

    def criterion(self, out: Embeddings, targets: tuple[()], batch: Batch) -> Losses:
        """The loss of the global batch, the same on every rank; collective."""
        z_bvd = full(out.z_bvd)
        B = len(z_bvd) * collectives.world_size()
        z_bvd = z_bvd - collectives.sum(z_bvd.sum(dim=0)) / B
        variance_vd = collectives.sum(z_bvd.square().sum(dim=0)) / B
        z1, z2 = (z_bvd / (variance_vd + EPSILON).sqrt()).unbind(dim=1)
        c = collectives.sum(z1.T @ z2) / B  # (d, d)
        d = len(c)
        on_diag = c.diagonal()
        off_diag = c.flatten()[:-1].view(d - 1, d + 1)[:, 1:]  # each diagonal entry starts a row: drop it
        invariance = (1 - on_diag).square().sum()
        redundancy = self.config.redundancy_weight * off_diag.square().sum()
        loss = invariance + redundancy
        return Losses(loss, invariance.detach(), redundancy.detach(), on_diag.detach().mean())
