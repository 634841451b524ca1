"""SimCLR v2: SimCLR with a deeper projector and, if wanted, negatives from a memory network.

Chen et al. 2020, arXiv:2006.10029, section 2 and eq. 1. With s_ij = cos(z_i, z_j) over the views of the global batch:
    l(i, j) = -log( exp(s_ij / T) / ( sum_{k != i} exp(s_ik / T) + sum_m exp(z_i.m / T) ) ),  mean over positive pairs.
The rows m are the newest memory_size embeddings by a memory network, an exponential moving average of the student, as
in MoCo; with memory_size 0 (as in the official code) it is SimCLR's loss. The projector has three layers, its hidden
ones as wide as the encoder; fine-tuning keeps its first one. Selective kernels: encoder.name skresnet50d,
encoder.sk_ratio 0.0625; timm's halve the input between two kernels, the official code's are two of 3 x 3 on all of it.
Defaults of the paper: T = 0.1, m = 0.999; it takes a memory of 65536.

Tune first: temperature and learning rate, then the batch; a memory adds most where the batch is small.

Shape suffixes: b = images on this rank, v = views, t = full-size views, d = embed_dim.
"""

from typing import ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import BaseModel, Field, NonNegativeInt, PositiveInt
from torch import Tensor, nn

from . import collectives
from .method import About, Batch, DataFacts, Encoder, Method, Needs, at_least
from .parts import ema
from .parts.backbones import ZeroInit
from .parts.forwarding import VIEW_FORWARD, ViewForward, embed_views
from .parts.heads import mlp, scale_norm
from .parts.norms import NORM, NormName
from .parts.precision import full
from .parts.queue import Queue
from .schedule import Positive, Share, scheduled
from .simclr import Embeddings, Losses, nt_xent


class SimCLRV2Config(BaseModel, frozen=True, extra="forbid", strict=True):
    zero_init_residual: ClassVar[ZeroInit] = "all"

    name: Literal["simclrv2"] = "simclrv2"
    hidden_dim: PositiveInt = Field(2048, description="Width of the projector's two hidden layers.")
    embed_dim: PositiveInt = Field(128, description="Width of the embedding.")
    temperature: Positive = Field(
        0.1, description="T; cosine similarities are divided by it; a number or a schedule."
    )
    memory_size: NonNegativeInt = Field(0, description="Negatives kept from the memory network; 0: none.")
    momentum: Share = Field(
        0.999,
        description="m of memory network = m * memory network + (1 - m) * student; a number or a schedule.",
    )
    projector_norm: NormName = Field("batch", description=NORM)
    view_forward: ViewForward = Field("joint", description=VIEW_FORWARD)


class Targets(NamedTuple):
    k_btd: Tensor  # unit embeddings of the full-size views by the memory network, fp32; t is 0 without one


class SimCLRV2(Method[SimCLRV2Config, Embeddings, Targets]):
    """Encoder, three-layer projector, memory network (`teacher`) and memory."""

    about: ClassVar[About] = About(2020, "instance contrast", "2 or more views; queue and teacher if wanted")
    needs: ClassVar[Needs] = Needs(at_least(2, small=True))

    def __init__(self, config: SimCLRV2Config, encoder: Encoder, data: DataFacts) -> None:
        super().__init__(config, encoder, data)
        self.momentum, self.temperature = scheduled(config.momentum), scheduled(config.temperature)
        dims = (encoder.dim, config.hidden_dim, config.hidden_dim, config.embed_dim)
        self.projector = nn.Sequential(
            mlp(dims, norm=config.projector_norm, hidden_bias=False, last_bias=False),
            scale_norm(config.projector_norm, config.embed_dim),
        )
        self.memory = Queue(config.memory_size, config.embed_dim) if config.memory_size else None
        student = nn.Sequential(encoder, self.projector)
        self.teacher = ema.teacher_of(student) if config.memory_size else None

    def forward(self, batch: Batch) -> Embeddings:
        """Embed the views, each (b, 3, H, W)."""
        return Embeddings(embed_views(self.encoder, self.projector, batch.views, self.config.view_forward))

    @torch.no_grad()
    def targets(self, batch: Batch) -> Targets:
        """What the memory network makes of the full-size views."""
        if self.teacher is None:
            return Targets(torch.empty(len(batch.ids), 0, self.config.embed_dim, device=batch.ids.device))
        encoder, projector = self.teacher
        views = batch.views[: batch.num_large]
        return Targets(
            F.normalize(full(embed_views(encoder, projector, views, self.config.view_forward)), dim=-1)
        )

    def criterion(self, out: Embeddings, targets: Targets, batch: Batch) -> Losses:
        """NT-Xent over this rank's anchors, against the memory as it was before this batch (eq. 1); collective."""
        temperature = self.temperature.at(batch.progress, self.data.epochs)
        return nt_xent(full(out.z_bvd), temperature, None if self.memory is None else self.memory.keys)

    @torch.no_grad()
    def after_step(self, out: Embeddings, targets: Targets, batch: Batch) -> None:
        """Move the memory network, then remember what it made of all ranks' images, in global order."""
        if self.memory is None or self.teacher is None:
            return
        momentum = self.momentum.at(batch.progress, self.data.epochs)
        ema.update(self.teacher, nn.Sequential(self.encoder, self.projector), momentum)
        self.memory.enqueue(collectives.gather(targets.k_btd).flatten(0, 1))
