"""SimSiam: predict the projection of the other view, by the same network; no gradient flows into what is predicted.

Chen & He 2020, arXiv:2011.10566, Algorithm 1 and eq. 1-4. With projection z, prediction p and stop-gradient sg:
    l = D(p^1, sg(z^2)) / 2 + D(p^2, sg(z^1)) / 2,    D(p, z) = -cos(p, z),    mean over images.
With more views, l is the mean of D(p^s, sg(z^t)) over full-size views t and all other views s. Defaults as in the
paper's section 3 and the official code.

Tune first: learning rate; that of the predictor stays constant (a group of `optim` with schedule {shape: constant}).

Shape suffixes: b = images on this rank, v = views, full-size ones first, d = embed_dim.
"""

from typing import ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import BaseModel, Field, PositiveInt
from torch import Tensor, nn

from .method import About, Batch, DataFacts, Encoder, Method, Needs, at_least
from .parts.backbones import ZeroInit
from .parts.forwarding import VIEW_FORWARD, ViewForward, embed_views
from .parts.heads import bare_norm, mlp
from .parts.multi_crop import directed
from .parts.norms import NORM, NormName
from .parts.precision import full


class SimSiamConfig(BaseModel, frozen=True, extra="forbid", strict=True):
    zero_init_residual: ClassVar[ZeroInit] = "all"

    name: Literal["simsiam"] = "simsiam"
    hidden_dim: PositiveInt = Field(2048, description="Width of the projector's two hidden layers.")
    embed_dim: PositiveInt = Field(2048, description="Width of projection and prediction.")
    bottleneck_dim: PositiveInt = Field(512, description="Hidden width of the predictor.")
    projector_norm: NormName = Field("batch", description=NORM)
    predictor_norm: NormName = Field("batch", description=NORM)
    predictor: bool = Field(True, description="False: p = z, which collapses (ablation of section 4.2).")
    stop_gradient: bool = Field(
        True, description="False: z has a gradient too, and collapses (ablation of section 4.1)."
    )
    view_forward: ViewForward = Field("per_view", description=VIEW_FORWARD)


class Embeddings(NamedTuple):
    p_bvd: Tensor  # predictor output, not normalised
    z_bvd: Tensor  # projector output, not normalised, without gradient if `stop_gradient`: sg(z)


class Losses(NamedTuple):
    loss: Tensor
    target_std: (
        Tensor  # of unit projections over images, mean over d; 1 / sqrt(d) when spread out, 0 when collapsed
    )


class SimSiam(Method[SimSiamConfig, Embeddings, tuple[()]]):
    """Encoder, projector and predictor."""

    about: ClassVar[About] = About(2020, "self-distillation", "2 or more views")
    needs: ClassVar[Needs] = Needs(at_least(2, small=True))

    def __init__(self, config: SimSiamConfig, encoder: Encoder, data: DataFacts) -> None:
        super().__init__(config, encoder, data)
        hidden, d = config.hidden_dim, config.embed_dim
        self.projector = nn.Sequential(
            mlp(
                (encoder.dim, hidden, hidden, d),
                norm=config.projector_norm,
                hidden_bias=False,
                last_bias=False,
            ),
            bare_norm(config.projector_norm, d),
        )
        dims = (d, config.bottleneck_dim, d)
        predictor = mlp(dims, norm=config.predictor_norm, hidden_bias=False, last_bias=True)
        self.predictor = predictor if config.predictor else nn.Identity()

    def forward(self, batch: Batch) -> Embeddings:
        """Predictions and projections of the views, each (b, 3, H, W)."""
        pz = embed_views(self.encoder, self._predict_and_project, batch.views, self.config.view_forward)
        p, z = pz.chunk(2, dim=-1)
        return Embeddings(p, self._sg(z))

    def _predict_and_project(self, h: Tensor) -> Tensor:
        """(n, dim) -> (n, 2 d): p beside z."""
        z = self.projector(h)
        return torch.cat([self.predictor(z), z], dim=-1)

    def _sg(self, z: Tensor) -> Tensor:
        """The stop-gradient of eq. 3."""
        return z.detach() if self.config.stop_gradient else z

    def criterion(self, out: Embeddings, targets: tuple[()], batch: Batch) -> Losses:
        """Mean over this rank's images and the terms (eq. 4)."""
        p_bvd = F.normalize(full(out.p_bvd), dim=-1)
        z_bvd = F.normalize(full(self._sg(out.z_bvd)), dim=-1)
        t, s = (list(views) for views in zip(*directed(batch.num_large, p_bvd.shape[1])))
        cosine = (p_bvd[:, s] * z_bvd[:, t]).sum(dim=-1)  # (b, terms): p^s with z^t
        return Losses(-cosine.mean(), z_bvd.detach().std(dim=0, correction=0).mean())
