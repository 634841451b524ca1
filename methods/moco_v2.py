"""MoCo v2: find the key of one's own other view among a long queue of older keys.

Chen et al. 2020, arXiv:2003.04297: MoCo (moco_v1.py has its algorithm) with an MLP head, stronger augmentation and a
cosine schedule. With unit vectors q (student, view 0), k (teacher, view 1) and the queue's rows n:
    l = -log( exp(q.k / T) / ( exp(q.k / T) + sum_n exp(q.n / T) ) ),  mean over images.
Defaults of the official code: T = 0.2, m = 0.999, K = 65536, no norm in the head.

Tune first: temperature; in short runs queue_size (a tenth of the images at most) and momentum (its
memory, 1 / (1 - m) steps, a twentieth of the run).
"""

from typing import ClassVar, Literal

from pydantic import Field, PositiveInt
from torch import nn

from .method import About
from .moco_v1 import MoCo, MoCoConfig
from .parts.heads import mlp
from .parts.norms import NORM, NormName
from .schedule import Positive


class MoCoHead(MoCoConfig, frozen=True):
    """What every method with MoCo v2's head and temperature is told."""

    hidden_dim: PositiveInt = Field(2048, description="Hidden width of the projector.")
    temperature: Positive = Field(
        0.2, description="T; cosine similarities are divided by it; a number or a schedule."
    )
    projector_norm: NormName = Field("none", description=NORM)


class MoCoV2Config(MoCoHead, frozen=True):
    name: Literal["mocov2"] = "mocov2"


class MoCoV2(MoCo[MoCoV2Config]):
    """With a projector of two layers."""

    about: ClassVar[About] = About(2020, "instance contrast", "2 or more views; queue, teacher")

    def head(self, dim: int) -> nn.Module:
        dims = (dim, self.config.hidden_dim, self.config.embed_dim)
        return mlp(dims, norm=self.config.projector_norm, hidden_bias=True, last_bias=True)
