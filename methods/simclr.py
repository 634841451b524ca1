"""SimCLR: two views of an image attract; every other view in the global batch repels.

Chen et al. 2020, arXiv:2002.05709, Algorithm 1 and eq. 1. With s_ij = cos(z_i, z_j):
    l(i, j) = -log( exp(s_ij / T) / sum_{k != i} exp(s_ik / T) ),  mean over the 2B anchors i with positive j.
The official code sums the means of the two halves, twice this; the paper's mean is kept. With more views, small
crops too, each other view j of the image is a positive of its own, and k leaves out the image's views but j.

Tune first: temperature and learning rate, then the batch: it is the number of negatives.

Shape suffixes: v = views, V = their number, b = images on this rank, B = b * world_size, d = embed_dim.
"""

from itertools import combinations
from typing import ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import BaseModel, Field, PositiveInt
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from . import collectives
from .method import About, Batch, DataFacts, Encoder, Method, Needs, at_least
from .parts.backbones import ZeroInit
from .parts.contrast import info_nce
from .parts.forwarding import VIEW_FORWARD, ViewForward, embed_views
from .parts.heads import mlp, scale_norm
from .parts.norms import NORM, NormName
from .parts.precision import full
from .schedule import Positive, scheduled

BLOCK = 1024  # anchors scored at a time when 2B is large
LARGE = 4096  # candidates from which the (2b, 2B) matrix is not worth keeping for the backward


class SimCLRConfig(BaseModel, frozen=True, extra="forbid", strict=True):
    zero_init_residual: ClassVar[ZeroInit] = "all"

    name: Literal["simclr"] = "simclr"
    hidden_dim: PositiveInt = Field(2048, description="Hidden width of the projector.")
    embed_dim: PositiveInt = Field(128, description="Width of the embedding.")
    temperature: Positive = Field(
        0.1, description="T; cosine similarities are divided by it; a number or a schedule."
    )
    projector_norm: NormName = Field("batch", description=NORM)
    head: Literal["mlp", "linear", "none"] = Field(
        "mlp", description="The projector; linear and none are the ablation of figure 8."
    )
    view_forward: ViewForward = Field("joint", description=VIEW_FORWARD)


class Embeddings(NamedTuple):
    z_bvd: Tensor  # projector output, not normalised


class Losses(NamedTuple):
    loss: Tensor
    accuracy: Tensor  # share of anchors that find their positive among all candidates
    positive_cosine: Tensor


class SimCLR(Method[SimCLRConfig, Embeddings, tuple[()]]):
    """Encoder f and projector g (section 2.1; the head as in the official code)."""

    about: ClassVar[About] = About(2020, "instance contrast", "2 or more views")
    needs: ClassVar[Needs] = Needs(at_least(2, small=True))

    def __init__(self, config: SimCLRConfig, encoder: Encoder, data: DataFacts) -> None:
        super().__init__(config, encoder, data)
        self.temperature = scheduled(config.temperature)
        hidden = (config.hidden_dim,) if config.head == "mlp" else ()
        dims = (encoder.dim, *hidden, config.embed_dim)
        projector = nn.Sequential(
            mlp(dims, norm=config.projector_norm, hidden_bias=False, last_bias=False),
            scale_norm(config.projector_norm, config.embed_dim),
        )
        self.projector = nn.Identity() if config.head == "none" else projector

    def forward(self, batch: Batch) -> Embeddings:
        """Embed the views, each (b, 3, H, W)."""
        return Embeddings(embed_views(self.encoder, self.projector, batch.views, self.config.view_forward))

    def criterion(self, out: Embeddings, targets: tuple[()], batch: Batch) -> Losses:
        """NT-Xent over this rank's anchors (eq. 1); collective."""
        return nt_xent(full(out.z_bvd), self.temperature.at(batch.progress, self.data.epochs))


def nt_xent(z_bvd: Tensor, temperature: float, memory: Tensor | None = None) -> Losses:
    """Eq. 1 over this rank's anchors; memory: (K, d) unit vectors that are negatives of all. Collective."""
    z_bvd = F.normalize(z_bvd, dim=-1)
    b, V, _ = z_bvd.shape
    anchors = z_bvd.transpose(0, 1).flatten(0, 1)  # (V b, d), view 0 first
    keys = collectives.gather(z_bvd).transpose(0, 1).flatten(0, 1)  # (V B, d)
    image = torch.arange(b, device=keys.device) + b * collectives.rank()
    views = torch.stack([image + v * (len(keys) // V) for v in range(V)], dim=1)  # keys of the same image
    own = torch.cat([views.roll(-v, dims=1) for v in range(V)])  # (V b, V): first the anchor itself
    candidates = keys if memory is None else torch.cat([keys, memory])
    loss, accuracy = _blockwise(anchors, candidates, own, temperature)
    cosines = [(z_bvd[:, i] * z_bvd[:, j]).sum(dim=-1).mean() for i, j in combinations(range(V), 2)]
    return Losses(loss, accuracy, torch.stack(cosines).detach().mean())


def _blockwise(anchors: Tensor, keys: Tensor, own: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Mean loss and accuracy over anchors and their positives, in blocks with recomputation where there are many.

    own: (a, V) int64 keys of each anchor's image: the anchor itself, then its positives, one after the other.
    """

    def score(a: Tensor, own: Tensor) -> Tensor:
        logits = a @ keys.T / temperature  # (a, candidates)
        terms = []
        for k in range(1, own.shape[1]):
            others = torch.cat([own[:, :k], own[:, k + 1 :]], dim=1)  # neither positive nor negative
            terms.append(torch.stack(info_nce(logits.scatter(1, others, float("-inf")), own[:, k])))
        return torch.stack(terms).mean(dim=0) * len(a)

    if len(keys) < LARGE:
        total = score(anchors, own)
    else:
        blocks = zip(anchors.split(BLOCK), own.split(BLOCK), strict=True)
        scores = [checkpoint(score, *block, use_reentrant=False) for block in blocks]
        total = torch.stack(scores).sum(dim=0)
    loss, accuracy = total / len(anchors)
    return loss, accuracy.detach()
