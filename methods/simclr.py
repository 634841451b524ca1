"""SimCLR: two views of an image attract; every other view in the global batch repels.

Chen et al. 2020, arXiv:2002.05709, Algorithm 1 and eq. 1. With s_ij = cos(z_i, z_j):
    l(i, j) = -log( exp(s_ij / T) / sum_{k != i} exp(s_ik / T) ),  mean over the 2B anchors i with positive j.
The official code sums the means of the two halves, twice this; the paper's mean is kept.
Shape suffixes: v = views (2), b = images on this rank, B = b * world_size, d = embed_dim.
"""

from typing import ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import BaseModel, Field, PositiveInt
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from . import collectives
from .method import Batch, DataFacts, Encoder, Method
from .parts.backbones import ZeroInit
from .parts.contrast import info_nce
from .parts.forwarding import ViewForward, embed_views
from .parts.heads import mlp, scale_norm
from .parts.precision import full
from .schedule import Positive, scheduled

BLOCK = 1024  # anchors scored at a time when 2B is large
LARGE = 4096  # candidates from which the (2b, 2B) matrix is not worth keeping for the backward


class SimCLRConfig(BaseModel, frozen=True, extra="forbid", strict=True):
    zero_init_residual: ClassVar[ZeroInit] = "all"

    name: Literal["simclr"] = "simclr"
    hidden_dim: PositiveInt = Field(2048, description="Hidden width of the projector.")
    embed_dim: PositiveInt = Field(128, description="Width of the embedding.")
    temperature: Positive = Field(0.1, description="T; cosine similarities are divided by it.")
    view_forward: ViewForward = Field("joint", description="Both views in one forward, or one forward each.")


class Embeddings(NamedTuple):
    z_bvd: Tensor  # projector output, not normalised


class Losses(NamedTuple):
    loss: Tensor
    accuracy: Tensor  # share of anchors that find their positive among all candidates
    positive_cosine: Tensor


class SimCLR(Method[SimCLRConfig, Embeddings, tuple[()]]):
    """Encoder f and projector g (section 2.1; the head as in the official code)."""

    def __init__(self, config: SimCLRConfig, encoder: Encoder, data: DataFacts) -> None:
        super().__init__(config, encoder, data)
        self.temperature = scheduled(config.temperature)
        dims = (encoder.dim, config.hidden_dim, config.embed_dim)
        self.projector = nn.Sequential(
            mlp(dims, norm=True, hidden_bias=False, last_bias=False), scale_norm(config.embed_dim)
        )

    def forward(self, batch: Batch) -> Embeddings:
        """Embed two views, each (b, 3, H, W)."""
        f, g = self.encoder, self.projector
        return Embeddings(embed_views(lambda x: g(f(x)), batch.views, self.config.view_forward))

    def criterion(self, out: Embeddings, targets: tuple[()], batch: Batch) -> Losses:
        """NT-Xent over this rank's 2b anchors (eq. 1); collective."""
        z_bvd = F.normalize(full(out.z_bvd), dim=-1)
        anchors = z_bvd.transpose(0, 1).flatten(0, 1)  # (2b, d), view 0 first
        keys = collectives.gather(z_bvd).transpose(0, 1).flatten(0, 1)  # (2B, d)
        b, B = len(z_bvd), len(keys) // 2
        view0 = torch.arange(b, device=keys.device) + b * collectives.rank()
        itself, positive = torch.cat([view0, view0 + B]), torch.cat([view0 + B, view0])
        temperature = self.temperature.at(batch.progress, self.data.epochs)
        loss, accuracy = self._nt_xent(anchors, keys, positive, itself, temperature)
        cosine = (z_bvd[:, 0] * z_bvd[:, 1]).sum(dim=-1).mean()
        return Losses(loss, accuracy, cosine.detach())

    def _nt_xent(
        self, anchors: Tensor, keys: Tensor, positive: Tensor, itself: Tensor, temperature: float
    ) -> tuple[Tensor, Tensor]:
        """Mean loss and accuracy of the anchors, in blocks with recomputation where the matrix is large."""

        def score(a: Tensor, p: Tensor, i: Tensor) -> Tensor:
            logits = a @ keys.T / temperature  # (2b, 2B)
            logits = logits.scatter(1, i[:, None], float("-inf"))  # k != i
            return torch.stack(info_nce(logits, p)) * len(a)

        if len(keys) < LARGE:
            total = score(anchors, positive, itself)
        else:
            blocks = zip(anchors.split(BLOCK), positive.split(BLOCK), itself.split(BLOCK), strict=True)
            scores = [checkpoint(score, *block, use_reentrant=False) for block in blocks]
            total = torch.stack(scores).sum(dim=0)
        loss, accuracy = total / len(anchors)
        return loss, accuracy.detach()
