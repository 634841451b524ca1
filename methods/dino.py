"""DINO: the student's sharp softmax of one view matches the centred, sharper one of the teacher for another view.

Caron et al. 2021, arXiv:2104.14294, eq. 1-4 and Algorithm 1. With logits g_s of the student, g_t of the teacher, and the
centre c:
    P_s = softmax(g_s / T_s),   P_t = softmax((g_t - c) / T_t)
    L = mean over full-size views t, over all other views s, small crops too, and over images, of -sum_k P_t,k log P_s,k
    c <- m_c c + (1 - m_c) mean of g_t over the teacher's views and images of all ranks, after the loss.        (eq. 4)
The teacher sees full-size views only and is an exponential moving average of the student. Without centring one
output takes all, without sharpening (T_t < T_s) the softmax becomes flat.
The last layer of the first epoch stands still by the recipe: optim.groups [{match: last.*, frozen_until: 1}];
the official code clips each parameter's gradient by itself: optim.clip_each.

Tune first: momentum, center_momentum and teacher_temperature, which decide whether it collapses (see output_use and
kl); outputs.

Shape suffixes: b = images on this rank, v = views, full-size ones first, t = full-size views, d = embed_dim, k = outputs.
"""

from typing import ClassVar, Literal, NamedTuple

import torch
from pydantic import BaseModel, Field, PositiveInt
from torch import Tensor, nn

from . import collectives
from .method import About, Batch, DataFacts, Encoder, Method, Needs, at_least
from .parts import ema
from .parts.backbones import ZeroInit
from .parts.forwarding import VIEW_FORWARD, ViewForward, embed_views
from .parts.heads import mlp
from .parts.norms import NORM, NormName
from .parts.precision import full
from .parts.prototypes import Prototypes, cross_entropies, use
from .schedule import Positive, Share, scheduled

INITIAL_STD = 0.02  # of the projector's weights


class DINOConfig(BaseModel, frozen=True, extra="forbid", strict=True):
    zero_init_residual: ClassVar[ZeroInit] = "none"

    name: Literal["dino"] = "dino"
    hidden_dim: PositiveInt = Field(2048, description="Hidden width of the projector, twice.")
    embed_dim: PositiveInt = Field(256, description="Width before the last layer.")
    outputs: int = Field(65536, ge=2, description="K, the number of outputs of the last layer.")
    student_temperature: Positive = Field(
        0.1, description="T_s; the student's logits are divided by it; a number or a schedule."
    )
    teacher_temperature: Positive = Field(
        0.04, description="T_t; below T_s; the paper's rises from 0.04 to 0.07; a number or a schedule."
    )
    center_momentum: float = Field(0.9, ge=0, le=1, description="m_c; 1: no centring.")
    momentum: Share = Field(0.996, description=ema.MOMENTUM)
    train_gain: bool = Field(
        False, description="A trained length for each row of the last layer (ViT-S of the paper), else 1."
    )
    projector_norm: NormName = Field("none", description=NORM)
    view_forward: ViewForward = Field("joint", description=VIEW_FORWARD)


class Embeddings(NamedTuple):
    z_bvd: Tensor  # what the last layer sees, not normalised
    logits_bvk: Tensor  # g_s, fp32


class Targets(NamedTuple):
    logits_btk: Tensor  # g_t, not centred, fp32


class Losses(NamedTuple):
    loss: Tensor
    target_entropy: Tensor  # of P_t; ln K: not sharp, 0: one output each
    kl: Tensor  # loss - target_entropy; 0 with a high entropy: collapsed to flat
    output_use: Tensor  # entropy of the mean P_t / ln K; 0: one output takes all


class LastLayer(Prototypes):
    """Unit rows against unit z, as a weight-normed layer gives: its length is 1, or `weight_g`, trained."""

    def __init__(self, config: DINOConfig) -> None:
        super().__init__(config.embed_dim, config.outputs)
        self.weight_g = nn.Parameter(torch.ones(config.outputs)) if config.train_gain else None

    def forward(self, z: Tensor) -> Tensor:
        """(..., d), not normalised -> (..., k), at least fp32."""
        cosines = super().forward(z)
        return cosines if self.weight_g is None else cosines * self.weight_g


class DINO(Method[DINOConfig, Embeddings, Targets]):
    """Student and teacher (encoder, projector, last layer), and the centre."""

    about: ClassVar[About] = About(
        2021, "self-distillation", "2 or more views and any number of small ones; teacher"
    )
    needs: ClassVar[Needs] = Needs(at_least(2, small=True))
    center: Tensor  # (k,) fp32

    def __init__(self, config: DINOConfig, encoder: Encoder, data: DataFacts) -> None:
        super().__init__(config, encoder, data)
        self.momentum = scheduled(config.momentum, end=1.0)
        self.student_temperature = scheduled(config.student_temperature)
        self.teacher_temperature = scheduled(config.teacher_temperature)
        dims = (encoder.dim, config.hidden_dim, config.hidden_dim, config.embed_dim)
        self.projector = mlp(
            dims, norm=config.projector_norm, hidden_bias=True, last_bias=True, activation=nn.GELU
        )
        for layer in self.projector:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=INITIAL_STD)
                nn.init.zeros_(layer.bias)
        self.last = LastLayer(config)
        self.teacher = ema.teacher_of(self._student())
        self.register_buffer("center", torch.zeros(config.outputs))

    def forward(self, batch: Batch) -> Embeddings:
        """The student on all views, each (b, 3, H, W)."""
        z_bvd = embed_views(self.encoder, self.projector, batch.views, self.config.view_forward)
        return Embeddings(z_bvd, self.last(z_bvd))

    @torch.no_grad()
    def targets(self, batch: Batch) -> Targets:
        """The teacher on the full-size views."""
        encoder, projector, last = self.teacher
        views = batch.views[: batch.num_large]
        return Targets(last(embed_views(encoder, projector, views, self.config.view_forward)))

    def criterion(self, out: Embeddings, targets: Targets, batch: Batch) -> Losses:
        """Cross-entropy over this rank's b images (eq. 3), against the centre of before this batch."""
        student_temperature = self.student_temperature.at(batch.progress, self.data.epochs)
        teacher_temperature = self.teacher_temperature.at(batch.progress, self.data.epochs)
        log_p_bvk = (full(out.logits_bvk) / student_temperature).log_softmax(dim=-1)
        g_btk = full(targets.logits_btk.detach())
        p_btk = ((g_btk - self.center) / teacher_temperature).softmax(dim=-1)
        loss = cross_entropies(p_btk, log_p_bvk).mean()
        entropy = torch.special.entr(p_btk).sum(dim=-1).mean()
        return Losses(loss, entropy, loss.detach() - entropy, use(p_btk.flatten(0, 1)))

    @torch.no_grad()
    def after_step(self, out: Embeddings, targets: Targets, batch: Batch) -> None:
        """Move the centre (eq. 4), then the teacher towards the new student."""
        mean = collectives.mean(full(targets.logits_btk).mean(dim=(0, 1)))
        self.center.lerp_(mean.to(self.center.dtype), 1 - self.config.center_momentum)
        momentum = self.momentum.at(batch.progress, self.data.epochs)
        ema.update(self.teacher, self._student(), momentum)

    def _student(self) -> nn.Sequential:
        return nn.Sequential(self.encoder, self.projector, self.last)
