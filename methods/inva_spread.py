"""InvaSpread: views of one image stay together, all other images of the batch spread; no queue, no bank.

Ye et al. 2019, arXiv:1904.03436, eq. 4-8. Over unit embeddings u of both views of all B images, with sg: no gradient
    P_ij = exp(u_i.sg(u_j) / T) / sum_{k != i} exp(u_i.sg(u_k) / T)
    l = -mean_i [ log P_i,pos(i) + sum_{j != i, pos(i)} log(1 - P_ij) ],   mean over the 2B anchors.
This is the official code's form. The paper's has view 1's v, view 0's u as all candidates, and gradient everywhere:
    P(i|j) = exp(u_i.u_j / T) / sum_k exp(u_k.u_j / T),   P(i|v_i) = exp(u_i.v_i / T) / sum_k exp(u_k.v_i / T)
    l = -mean_i [ log P(i|v_i) + sum_{j != i} log(1 - P(i|j)) ].
The forerunner of SimCLR: same negatives, no hidden layer in the head, weaker colours. Temperature as in the paper.

Tune first: learning rate, then temperature.

Shape suffixes: v = views (2), b = images on this rank, B = b * world_size, d = embed_dim.
"""

from typing import ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import BaseModel, Field, PositiveInt
from torch import Tensor, nn

from . import collectives
from .method import About, Batch, DataFacts, Encoder, Method, Needs, exactly
from .parts.backbones import ZeroInit
from .parts.contrast import info_nce
from .parts.forwarding import VIEW_FORWARD, ViewForward, embed_views
from .parts.precision import full
from .schedule import Positive, scheduled

LARGEST = 1 - 1e-6  # P at which log(1 - P) stops, in fp32


class InvaSpreadConfig(BaseModel, frozen=True, extra="forbid", strict=True):
    zero_init_residual: ClassVar[ZeroInit] = "none"

    name: Literal["inva_spread"] = "inva_spread"
    embed_dim: PositiveInt = Field(128, description="Width of the embedding.")
    temperature: Positive = Field(
        0.1, description="T; cosine similarities are divided by it; a number or a schedule."
    )
    form: Literal["code", "paper"] = Field(
        "code", description="Both views as anchors, against constant keys; or view 0 as the only candidates."
    )
    view_forward: ViewForward = Field("joint", description=VIEW_FORWARD)


class Embeddings(NamedTuple):
    z_bvd: Tensor  # projector output, not normalised


class Losses(NamedTuple):
    loss: Tensor
    invariance: Tensor  # first term
    spread: Tensor  # second term
    accuracy: Tensor  # share of anchors that find their positive among all candidates


class InvaSpread(Method[InvaSpreadConfig, Embeddings, tuple[()]]):
    """Encoder and a linear projector."""

    about: ClassVar[About] = About(2019, "instance contrast", "2 views")
    needs: ClassVar[Needs] = Needs(exactly(2))

    def __init__(self, config: InvaSpreadConfig, encoder: Encoder, data: DataFacts) -> None:
        super().__init__(config, encoder, data)
        self.temperature = scheduled(config.temperature)
        self.projector = nn.Linear(encoder.dim, config.embed_dim)

    def forward(self, batch: Batch) -> Embeddings:
        """Embed two views, each (b, 3, H, W)."""
        return Embeddings(embed_views(self.encoder, self.projector, batch.views, self.config.view_forward))

    def criterion(self, out: Embeddings, targets: tuple[()], batch: Batch) -> Losses:
        """Mean over this rank's anchors (eq. 8); collective."""
        u_vbd = F.normalize(full(out.z_bvd), dim=-1).transpose(0, 1)
        T = self.temperature.at(batch.progress, self.data.epochs)
        b = u_vbd.shape[1]
        image = torch.arange(b, device=u_vbd.device) + b * collectives.rank()
        if self.config.form == "paper":
            u, v = u_vbd
            keys = collectives.gather(u)  # (B, d)
            invariance, accuracy = info_nce(v @ keys.T / T, image)
            spread = _spread(u @ keys.T / T, image)
        else:
            B = b * collectives.world_size()
            keys = collectives.gather(u_vbd.detach().transpose(0, 1)).transpose(0, 1).flatten(0, 1)  # (2B, d)
            itself, positive = torch.cat([image, image + B]), torch.cat([image + B, image])
            logits = u_vbd.flatten(0, 1) @ keys.T / T  # (2b, 2B), view 0 first
            logits = logits.scatter(1, itself[:, None], float("-inf"))  # k != i
            invariance, accuracy = info_nce(logits, positive)
            spread = _spread(logits, positive)
        return Losses(invariance + spread, invariance.detach(), spread.detach(), accuracy)


def _spread(logits: Tensor, own: Tensor) -> Tensor:
    """-sum_j log(1 - P_ij) without the column `own` of each row; mean over rows, 0-d."""
    p = logits.softmax(dim=1).scatter(1, own[:, None], 0.0)
    return -torch.log1p(-p.clamp(max=LARGEST)).sum(dim=1).mean()
