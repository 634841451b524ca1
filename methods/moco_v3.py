"""MoCo v3: predict the teacher's key of one's own other view among the keys of the global batch.

Chen, Xie & He 2021, arXiv:2104.02057, eq. 1 and Algorithm 1. With unit predictions q (student: encoder, projector,
predictor) and unit keys k (teacher: encoder, projector), all of one view compared with all of another:
    ctr(q^s, k^t) = -2 T log( exp(q^s_i.k^t_i / T) / sum_j exp(q^s_i.k^t_j / T) ),  mean over images i
    l = ctr(q^1, k^2) + ctr(q^2, k^1),
the 2 T a part of the loss. With more views the teacher sees the full-size ones, and l is the mean of the terms over
full-size views t and all other views s. Query and key encoder are called student and teacher here. The official code
moves the teacher before the key forward; here it moves after the optimiser step: the same sequence, with the momentum
of one step earlier. The patch projection of a ViT stays at random (section 4.2): encoder.freeze_patches.

Tune first: learning rate (2 T scales the gradient), momentum in short runs; temperature.

Shape suffixes: b = images on this rank, B = b * world_size, v = views, full-size ones first, t = full-size views,
d = embed_dim.
"""

from typing import ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import BaseModel, Field, PositiveInt
from torch import Tensor, nn

from . import collectives
from .method import About, Batch, DataFacts, Encoder, Method, Needs, at_least
from .parts import ema
from .parts.backbones import ZeroInit
from .parts.contrast import info_nce
from .parts.forwarding import VIEW_FORWARD, ViewForward, embed_views
from .parts.heads import bare_norm, mlp
from .parts.multi_crop import directed
from .parts.norms import NORM, NormName
from .parts.precision import full
from .schedule import Positive, Share, scheduled


class MoCoV3Config(BaseModel, frozen=True, extra="forbid", strict=True):
    zero_init_residual: ClassVar[ZeroInit] = "all"

    name: Literal["mocov3"] = "mocov3"
    hidden_dim: PositiveInt = Field(4096, description="Hidden width of projector and predictor.")
    embed_dim: PositiveInt = Field(256, description="Width of queries and keys.")
    hidden_layers: PositiveInt = Field(1, description="Of the projector; 2 for a ViT.")
    predictor_last_norm: bool = Field(
        False, description="Whether the predictor ends with a norm, as the projector does; true for a ViT."
    )
    temperature: Positive = Field(
        1.0, description="T; cosines are divided by it; 0.2 for a ViT; a number or a schedule."
    )
    momentum: Share = Field(0.99, description=ema.MOMENTUM)
    projector_norm: NormName = Field("batch", description=NORM)
    predictor_norm: NormName = Field("batch", description=NORM)
    view_forward: ViewForward = Field("per_view", description=VIEW_FORWARD)


class Embeddings(NamedTuple):
    q_bvd: Tensor  # predictor output, not normalised


class Targets(NamedTuple):
    k_btd: Tensor  # unit keys of the full-size views, fp32


class Losses(NamedTuple):
    loss: Tensor
    accuracy: Tensor  # share of queries that find their key in the global batch
    positive_cosine: Tensor


class MoCoV3(Method[MoCoV3Config, Embeddings, Targets]):
    """Student (encoder, projector, predictor) and teacher (encoder, projector)."""

    about: ClassVar[About] = About(2021, "instance contrast", "2 or more views; teacher")
    needs: ClassVar[Needs] = Needs(at_least(2, small=True))

    def __init__(self, config: MoCoV3Config, encoder: Encoder, data: DataFacts) -> None:
        super().__init__(config, encoder, data)
        self.temperature, self.momentum = scheduled(config.temperature), scheduled(config.momentum, end=1.0)
        hidden, d = config.hidden_dim, config.embed_dim
        dims = (encoder.dim, *[hidden] * config.hidden_layers, d)
        self.projector = nn.Sequential(
            mlp(dims, norm=config.projector_norm, hidden_bias=False, last_bias=False),
            bare_norm(config.projector_norm, d),
        )
        self.predictor = nn.Sequential(
            mlp((d, hidden, d), norm=config.predictor_norm, hidden_bias=False, last_bias=False),
            bare_norm(config.predictor_norm if config.predictor_last_norm else "none", d),
        )
        self.teacher = ema.teacher_of(nn.Sequential(encoder, self.projector))

    def forward(self, batch: Batch) -> Embeddings:
        """Queries of the views, each (b, 3, H, W)."""
        head = nn.Sequential(self.projector, self.predictor)
        return Embeddings(embed_views(self.encoder, head, batch.views, self.config.view_forward))

    @torch.no_grad()
    def targets(self, batch: Batch) -> Targets:
        """Keys of the full-size views."""
        encoder, projector = self.teacher
        views = batch.views[: batch.num_large]
        k_btd = embed_views(encoder, projector, views, self.config.view_forward)
        return Targets(F.normalize(full(k_btd), dim=-1))

    def criterion(self, out: Embeddings, targets: Targets, batch: Batch) -> Losses:
        """This rank's queries against the keys of all ranks (eq. 1); collective."""
        q_bvd = F.normalize(full(out.q_bvd), dim=-1)
        own = targets.k_btd.detach()
        k_Btd = collectives.gather(own)
        temperature = self.temperature.at(batch.progress, self.data.epochs)
        image = torch.arange(len(own), device=own.device) + len(own) * collectives.rank()
        terms, cosines = [], []
        for t, s in directed(batch.num_large, q_bvd.shape[1]):
            logits = q_bvd[:, s] @ k_Btd[:, t].T / temperature  # (b, B)
            terms.append(torch.stack(info_nce(logits, image)))
            cosines.append((q_bvd[:, s] * own[:, t]).sum(dim=-1).mean())
        loss, accuracy = torch.stack(terms).mean(dim=0)
        directions = 2 if q_bvd.shape[1] == 2 else 1  # the paper's sum over both
        return Losses(
            directions * 2 * temperature * loss, accuracy.detach(), torch.stack(cosines).detach().mean()
        )

    @torch.no_grad()
    def after_step(self, out: Embeddings, targets: Targets, batch: Batch) -> None:
        """Move the teacher towards the new student."""
        momentum = self.momentum.at(batch.progress, self.data.epochs)
        ema.update(self.teacher, nn.Sequential(self.encoder, self.projector), momentum)
