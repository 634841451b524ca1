"""BYOL: predict the teacher's projection of the other view; no negatives.

Grill et al. 2020, arXiv:2006.07733, eq. 2 and Algorithm 1. With student prediction p, teacher projection z'
and hat = L2 normalisation:
    l = |hat(p^1) - hat(z'^2)|^2 + |hat(p^2) - hat(z'^1)|^2 = (2 - 2 cos) + (2 - 2 cos),  mean over images.
Online and target network are called student and teacher here.
Shape suffixes: b = images on this rank, v = views (2), d = embed_dim.
"""

from typing import ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import BaseModel, Field, PositiveInt
from torch import Tensor, nn

from .method import Batch, DataFacts, Encoder, Method
from .parts import ema
from .parts.backbones import ZeroInit
from .parts.forwarding import ViewForward, embed_views
from .parts.heads import mlp
from .parts.precision import full
from .schedule import Share, scheduled


class BYOLConfig(BaseModel, frozen=True, extra="forbid", strict=True):
    zero_init_residual: ClassVar[ZeroInit] = "bottleneck"

    name: Literal["byol"] = "byol"
    hidden_dim: PositiveInt = Field(4096, description="Hidden width of projector and predictor.")
    embed_dim: PositiveInt = Field(256, description="Width of projection and prediction.")
    momentum: Share = Field(
        0.996,
        description="m of teacher = m * teacher + (1 - m) * student; a number rises to 1 by a half-cosine.",
    )
    view_forward: ViewForward = Field(
        "per_view", description="Both views in one forward, or one forward each."
    )


class Embeddings(NamedTuple):
    p_bvd: Tensor  # predictor output, not normalised


class Targets(NamedTuple):
    z_bvd: Tensor  # teacher's projection, not normalised


class Losses(NamedTuple):
    loss: Tensor
    positive_cosine: Tensor  # between prediction and target
    target_std: (
        Tensor  # of unit targets over images, mean over d; 1 / sqrt(d) when spread out, 0 when collapsed
    )


class BYOL(Method[BYOLConfig, Embeddings, Targets]):
    """Student (encoder, projector, predictor) and teacher (encoder, projector)."""

    def __init__(self, config: BYOLConfig, encoder: Encoder, data: DataFacts) -> None:
        super().__init__(config, encoder, data)
        self.momentum = scheduled(config.momentum, end=1.0)
        hidden, d = config.hidden_dim, config.embed_dim
        self.projector = mlp((encoder.dim, hidden, d), norm=True, hidden_bias=True, last_bias=False)
        self.predictor = mlp((d, hidden, d), norm=True, hidden_bias=True, last_bias=False)
        self.teacher = ema.teacher_of(nn.Sequential(encoder, self.projector))

    def forward(self, batch: Batch) -> Embeddings:
        """Predictions of two views, each (b, 3, H, W)."""
        f, g, q = self.encoder, self.projector, self.predictor
        return Embeddings(embed_views(lambda x: q(g(f(x))), batch.views, self.config.view_forward))

    @torch.no_grad()
    def targets(self, batch: Batch) -> Targets:
        """The teacher's projections of the same views."""
        return Targets(embed_views(self.teacher, batch.views, self.config.view_forward))

    def criterion(self, out: Embeddings, targets: Targets, batch: Batch) -> Losses:
        """Sum of both directions, mean over this rank's b images (eq. 2)."""
        p_bvd = F.normalize(full(out.p_bvd), dim=-1)
        z_bvd = F.normalize(full(targets.z_bvd.detach()), dim=-1)
        cosine = (p_bvd * z_bvd.flip(1)).sum(dim=-1)  # (b, 2): p^1 with z'^2, p^2 with z'^1
        loss = (2 - 2 * cosine).sum(dim=1).mean()
        return Losses(loss, cosine.detach().mean(), z_bvd.std(dim=0, correction=0).mean())

    @torch.no_grad()
    def after_step(self, out: Embeddings, targets: Targets, batch: Batch) -> None:
        """Move the teacher towards the new student."""
        momentum = self.momentum.at(batch.progress, self.data.epochs)
        ema.update(self.teacher, nn.Sequential(self.encoder, self.projector), momentum)
