"""BYOL: predict the teacher's projection of the other view; no negatives.

Grill et al. 2020, arXiv:2006.07733, eq. 2 and Algorithm 1. With student prediction p, teacher projection z'
and hat = L2 normalisation:
    l = |hat(p^1) - hat(z'^2)|^2 + |hat(p^2) - hat(z'^1)|^2 = (2 - 2 cos) + (2 - 2 cos),  mean over images.
With more views the teacher sees the full-size ones, and l is the mean of the terms |hat(p^s) - hat(z'^t)|^2 over
full-size views t and all other views s. Online and target network are called student and teacher here.

Tune first: momentum (its memory, 1 / (1 - m) steps, a twentieth of the run), then the learning rate.

Shape suffixes: b = images on this rank, v = views, full-size ones first, t = full-size views, d = embed_dim.
"""

from typing import ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import BaseModel, Field, PositiveInt
from torch import Tensor, nn

from .method import About, Batch, DataFacts, Encoder, Method, Needs, at_least
from .parts import ema
from .parts.backbones import ZeroInit
from .parts.forwarding import VIEW_FORWARD, ViewForward, embed_views
from .parts.heads import mlp
from .parts.multi_crop import directed
from .parts.norms import NORM, NormName
from .parts.precision import full
from .schedule import Share, scheduled


class BYOLConfig(BaseModel, frozen=True, extra="forbid", strict=True):
    zero_init_residual: ClassVar[ZeroInit] = "bottleneck"

    name: Literal["byol"] = "byol"
    hidden_dim: PositiveInt = Field(4096, description="Hidden width of projector and predictor.")
    embed_dim: PositiveInt = Field(256, description="Width of projection and prediction.")
    momentum: Share = Field(0.996, description=ema.MOMENTUM)
    projector_norm: NormName = Field("batch", description=NORM)
    predictor_norm: NormName = Field("batch", description=NORM)
    predictor: bool = Field(True, description="False: p = z, which collapses (ablation of table 5b).")
    view_forward: ViewForward = Field("per_view", description=VIEW_FORWARD)


class Embeddings(NamedTuple):
    p_bvd: Tensor  # predictor output, not normalised


class Targets(NamedTuple):
    z_btd: Tensor  # teacher's projection of the full-size views, not normalised


class Losses(NamedTuple):
    loss: Tensor
    positive_cosine: Tensor  # between prediction and target
    target_std: (
        Tensor  # of unit targets over images, mean over d; 1 / sqrt(d) when spread out, 0 when collapsed
    )


class BYOL(Method[BYOLConfig, Embeddings, Targets]):
    """Student (encoder, projector, predictor) and teacher (encoder, projector)."""

    about: ClassVar[About] = About(2020, "self-distillation", "2 or more views; teacher")
    needs: ClassVar[Needs] = Needs(at_least(2, small=True))

    def __init__(self, config: BYOLConfig, encoder: Encoder, data: DataFacts) -> None:
        super().__init__(config, encoder, data)
        self.momentum = scheduled(config.momentum, end=1.0)
        hidden, d = config.hidden_dim, config.embed_dim
        dims = (encoder.dim, hidden, d)
        self.projector = mlp(dims, norm=config.projector_norm, hidden_bias=True, last_bias=False)
        predictor = mlp((d, hidden, d), norm=config.predictor_norm, hidden_bias=True, last_bias=False)
        self.predictor = predictor if config.predictor else nn.Identity()
        self.teacher = ema.teacher_of(nn.Sequential(encoder, self.projector))

    def forward(self, batch: Batch) -> Embeddings:
        """Predictions of the views, each (b, 3, H, W)."""
        head = nn.Sequential(self.projector, self.predictor)
        return Embeddings(embed_views(self.encoder, head, batch.views, self.config.view_forward))

    @torch.no_grad()
    def targets(self, batch: Batch) -> Targets:
        """The teacher's projections of the full-size views."""
        encoder, projector = self.teacher
        return Targets(
            embed_views(encoder, projector, batch.views[: batch.num_large], self.config.view_forward)
        )

    def criterion(self, out: Embeddings, targets: Targets, batch: Batch) -> Losses:
        """Mean over this rank's b images of the sum of both directions (eq. 2), of more than two views of their mean."""
        p_bvd = F.normalize(full(out.p_bvd), dim=-1)
        z_btd = F.normalize(full(targets.z_btd.detach()), dim=-1)
        t, s = (list(views) for views in zip(*directed(batch.num_large, p_bvd.shape[1])))
        cosine = (p_bvd[:, s] * z_btd[:, t]).sum(dim=-1)  # (b, terms): p^s with z'^t
        terms = 2 - 2 * cosine
        loss = terms.sum(dim=1).mean() if p_bvd.shape[1] == 2 else terms.mean()
        return Losses(loss, cosine.detach().mean(), z_btd.std(dim=0, correction=0).mean())

    @torch.no_grad()
    def after_step(self, out: Embeddings, targets: Targets, batch: Batch) -> None:
        """Move the teacher towards the new student."""
        momentum = self.momentum.at(batch.progress, self.data.epochs)
        ema.update(self.teacher, nn.Sequential(self.encoder, self.projector), momentum)
