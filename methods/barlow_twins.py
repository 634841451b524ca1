"""Barlow Twins: the cross-correlation of the two views' features over the batch should be the identity.

Zbontar et al. 2021, arXiv:2103.03230, eq. 1-2 and Algorithm 1. With z standardised per dimension over the
global batch of B images (biased variance, each view its own):
    C = z1^T z2 / B,    l(C) = sum_j (1 - C_jj)^2 + lambda * sum_{j != k} C_jk^2.
The paper has lambda = 0.005, the official code 0.0051. With redundancy_weight = mean it is 1 / (d - 1): l is then d
times the sum of two means, over the diagonal and off it (of unknown merit: the paper swept 0.002 to 0.02).
With more views: the mean of l over the pairs of a full-size view and any other one.

predictor and stop_gradient break the symmetry, one or both, as in the paper's ablation. With a predictor q, p = q(z) is
standardised like z, otherwise p = z; sg is the stop-gradient, otherwise the identity:
    L = l(sg(z1)^T p2 / B) / 2 + l(sg(z2)^T p1 / B) / 2,
with more views the mean over full-size views z and all other views p. Each view is predicted in turn, so that
stop_gradient alone halves the gradient of two views and changes nothing else.

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
from .parts.multi_crop import directed, unordered
from .parts.norms import NORM, NormName
from .parts.precision import full

EPSILON = 1e-5  # of the authors' batch norm, which standardises z


class BarlowTwinsConfig(BaseModel, frozen=True, extra="forbid", strict=True):
    zero_init_residual: ClassVar[ZeroInit] = "all"

    name: Literal["barlow_twins"] = "barlow_twins"
    hidden_dim: PositiveInt = Field(
        8192, description="Width of the projector's two hidden layers, and of the predictor's one."
    )
    embed_dim: PositiveInt = Field(8192, description="Width of the embedding.")
    redundancy_weight: NonNegativeFloat | Literal["mean"] = Field(
        5.1e-3,
        description="lambda, of the off-diagonal term; mean: 1 / (d - 1), so that both terms are d times a mean.",
    )
    projector_norm: NormName = Field("batch", description=f"{NORM} Of the predictor too.")
    predictor: bool = Field(False, description="True: p = q(z) by two layers (ablation of asymmetry).")
    stop_gradient: bool = Field(False, description="True: z has no gradient, only p (ablation of asymmetry).")
    view_forward: ViewForward = Field("per_view", description=VIEW_FORWARD)


class Embeddings(NamedTuple):
    z_bvd: Tensor  # projector output, not standardised


class Predictions(NamedTuple):
    """What comes in the place of Embeddings with a predictor."""

    z_bvd: Tensor  # projector output, not standardised, without gradient if `stop_gradient`: sg(z)
    p_bvd: Tensor  # predictor output, not standardised


class Losses(NamedTuple):
    loss: Tensor
    invariance: Tensor  # first term
    redundancy: Tensor  # second term, lambda included
    positive_correlation: Tensor  # mean of the diagonal of C


class BarlowTwins(Method[BarlowTwinsConfig, Embeddings | Predictions, tuple[()]]):
    """Encoder and three-layer projector; for the ablation a predictor, too."""

    about: ClassVar[About] = About(2021, "redundancy reduction", "2 or more views")
    needs: ClassVar[Needs] = Needs(at_least(2, small=True))

    def __init__(self, config: BarlowTwinsConfig, encoder: Encoder, data: DataFacts) -> None:
        super().__init__(config, encoder, data)
        hidden, d, norm = config.hidden_dim, config.embed_dim, config.projector_norm
        self.projector = mlp((encoder.dim, hidden, hidden, d), norm=norm, hidden_bias=False, last_bias=False)
        self.predictor = (
            mlp((d, hidden, d), norm=norm, hidden_bias=False, last_bias=False) if config.predictor else None
        )

    def forward(self, batch: Batch) -> Embeddings | Predictions:
        """Embed the views, each (b, 3, H, W)."""
        if self.predictor is None:
            return Embeddings(
                embed_views(self.encoder, self.projector, batch.views, self.config.view_forward)
            )
        zp = embed_views(self.encoder, self._project_and_predict, batch.views, self.config.view_forward)
        z, p = zp.chunk(2, dim=-1)
        return Predictions(self._sg(z), p)

    def _project_and_predict(self, h: Tensor) -> Tensor:
        """(n, dim) -> (n, 2 d): z beside p."""
        z = self.projector(h)
        assert self.predictor is not None
        return torch.cat([z, self.predictor(z)], dim=-1)

    def _sg(self, z: Tensor) -> Tensor:
        """The stop-gradient of the ablation, otherwise the identity."""
        return z.detach() if self.config.stop_gradient else z

    def criterion(self, out: Embeddings | Predictions, targets: tuple[()], batch: Batch) -> Losses:
        """The loss of the global batch, the same on every rank; collective."""
        B = len(out.z_bvd) * collectives.world_size()
        z = _standardised(full(out.z_bvd), B)
        p = _standardised(full(out.p_bvd), B) if isinstance(out, Predictions) else z
        symmetric = not (self.config.predictor or self.config.stop_gradient)
        pairs = (unordered if symmetric else directed)(batch.num_large, len(z))
        terms = torch.stack([self._terms(collectives.sum(self._sg(z[t]).T @ p[s]) / B) for t, s in pairs])
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


def _standardised(z_bvd: Tensor, B: int) -> tuple[Tensor, ...]:
    """Each view (b, d) with mean 0 and variance 1 of every dimension over the global batch of B images; collective."""
    z_bvd = z_bvd - collectives.sum(z_bvd.sum(dim=0)) / B
    variance_vd = collectives.sum(z_bvd.square().sum(dim=0)) / B
    return (z_bvd / (variance_vd + EPSILON).sqrt()).unbind(dim=1)
