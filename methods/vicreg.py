"""VICReg: views agree, every dimension keeps its spread, no two dimensions say the same.

Bardes et al. 2021, arXiv:2105.04906, eq. 1-6 and Algorithm 1. Over the global batch of B images, with
S_j = sqrt(var(z_j) + 1e-4) and C the covariance of z, both over B - 1:
    s = mean_ij (z^1_ij - z^2_ij)^2,    v(z) = mean_j relu(1 - S_j),    c(z) = sum_{j != k} C_jk^2 / d
    l = 25 s + 25 (v(z^1) + v(z^2)) / 2 + (c(z^1) + c(z^2)).
This is the official code's form; the paper's s is a sum over the dimensions, d times as large, and its v is not
halved. With more views: s is the mean over the pairs of a full-size view and any other one, v and c the means over
views (c twice that, as with two). z is not normalised, and the views' networks could differ.

Tune first: learning rate, then variance_weight with invariance_weight equal to it; embed_dim up to 8192.

Shape suffixes: b = images on this rank, v = views, full-size ones first, d = embed_dim.
"""

from typing import ClassVar, Literal, NamedTuple

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

EPSILON = 1e-4  # under the root of eq. 2


class VICRegConfig(BaseModel, frozen=True, extra="forbid", strict=True):
    zero_init_residual: ClassVar[ZeroInit] = "all"

    name: Literal["vicreg"] = "vicreg"
    hidden_dim: PositiveInt = Field(8192, description="Width of the projector's two hidden layers.")
    embed_dim: PositiveInt = Field(8192, description="Width of the embedding.")
    invariance_weight: NonNegativeFloat = Field(25.0, description="Of s, lambda in the paper.")
    variance_weight: NonNegativeFloat = Field(25.0, description="Of v, mu in the paper.")
    covariance_weight: NonNegativeFloat = Field(1.0, description="Of c, nu in the paper.")
    form: Literal["code", "paper"] = Field(
        "code", description="paper: s summed over the dimensions and v over both views, instead of means."
    )
    projector_norm: NormName = Field("batch", description=NORM)
    view_forward: ViewForward = Field("per_view", description=VIEW_FORWARD)


class Embeddings(NamedTuple):
    z_bvd: Tensor  # projector output


class Losses(NamedTuple):
    loss: Tensor
    invariance: Tensor  # the three terms, weights included
    variance: Tensor
    covariance: Tensor
    std: Tensor  # S, mean over dimensions and views; the hinge wants 1


class VICReg(Method[VICRegConfig, Embeddings, tuple[()]]):
    """Encoder and three-layer projector (expander)."""

    about: ClassVar[About] = About(2021, "redundancy reduction", "2 or more views")
    needs: ClassVar[Needs] = Needs(at_least(2, small=True))

    def __init__(self, config: VICRegConfig, encoder: Encoder, data: DataFacts) -> None:
        super().__init__(config, encoder, data)
        dims = (encoder.dim, config.hidden_dim, config.hidden_dim, config.embed_dim)
        self.projector = mlp(dims, norm=config.projector_norm, hidden_bias=True, last_bias=False)

    def forward(self, batch: Batch) -> Embeddings:
        """Embed the views, each (b, 3, H, W)."""
        return Embeddings(embed_views(self.encoder, self.projector, batch.views, self.config.view_forward))

    def criterion(self, out: Embeddings, targets: tuple[()], batch: Batch) -> Losses:
        """The loss of the global batch, invariance that of this rank's images (eq. 6); collective."""
        config, z_bvd = self.config, full(out.z_bvd)
        d = z_bvd.shape[-1]
        one, other = (list(views) for views in zip(*unordered(batch.num_large, z_bvd.shape[1])))
        invariance = (z_bvd[:, one] - z_bvd[:, other]).square().mean()

        B = len(z_bvd) * collectives.world_size()
        z_bvd = z_bvd - collectives.sum(z_bvd.sum(dim=0)) / B
        z_vbd = z_bvd.transpose(0, 1)
        c_vdd = collectives.sum(z_vbd.mT @ z_vbd) / (B - 1)
        on_diag = c_vdd.diagonal(dim1=1, dim2=2)
        std = (on_diag + EPSILON).sqrt()
        variance = (1 - std).relu().mean()
        covariance = 2 * (c_vdd.square().sum(dim=(1, 2)) - on_diag.square().sum(dim=1)).mean() / d

        if config.form == "paper":
            invariance, variance = d * invariance, 2 * variance
        terms = (
            config.invariance_weight * invariance,
            config.variance_weight * variance,
            config.covariance_weight * covariance,
        )
        s, v, c = (term.detach() for term in terms)
        return Losses(terms[0] + terms[1] + terms[2], s, v, c, std.detach().mean())
