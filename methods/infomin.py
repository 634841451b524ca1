"""InfoMin: MoCo v2 with views that share little but what a picture shows, and a jigsaw of the picture beside them.

Tian et al. 2020, arXiv:2005.10243, section 4; PyContrast's code. L is MoCo v2's loss (moco_v2.py), L_jig the same loss,
against the same key and queue, of a query that is made of nine shuffled pieces by the same encoder and a head of its own:
    L_infomin = jigsaw_weight L_jig + (1 - jigsaw_weight) L
Pieces are cut from the last full-size view, if there are three or more, else from view 0. I_NCE = log(K + 1) - L is a lower
bound of what view 0 and view 1 share: too much or too little of it, and the encoder is worse (the reverse U of section 3);
it is changed by crop_scale and the strengths of the colours. Defaults of the official code: T = 0.15, jigsaw_weight 0.5.

Tune first: the views (crop_scale, then colours), temperature; in short runs queue_size and momentum, as for MoCo v2.
"""

import math
from typing import ClassVar, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from .method import About, Batch, DataFacts, Encoder
from .moco_v1 import Embeddings, MoCo, Targets
from .moco_v2 import MoCoHead
from .parts.forwarding import embed_views
from .parts.heads import mlp
from .parts.jigsaw import JigsawHead, pieces
from .schedule import Positive, Share, scheduled


class InfoMinConfig(MoCoHead, frozen=True):
    name: Literal["infomin"] = "infomin"
    temperature: Positive = Field(
        0.15, description="T; cosine similarities are divided by it; a number or a schedule."
    )
    jigsaw_weight: Share = Field(0.5, description="The jigsaw's part of the loss; a number or a schedule.")


class Losses(NamedTuple):
    loss: Tensor
    accuracy: Tensor  # share of queries that find their key among 1 + K candidates
    positive_cosine: Tensor
    jigsaw_loss: Tensor
    shared_nats: Tensor  # I_NCE of the views, without the jigsaw


class InfoMin(MoCo[InfoMinConfig]):
    """MoCo with a projector of two layers, and a head for the pieces; the last query is theirs."""

    about: ClassVar[About] = About(
        2020, "instance contrast", "2 or more views; queue, teacher; a jigsaw's picture"
    )

    seed: Tensor  # 0-d int64, of the pieces' places and order

    def __init__(self, config: InfoMinConfig, encoder: Encoder, data: DataFacts) -> None:
        super().__init__(config, encoder, data)
        self.jigsaw_weight = scheduled(config.jigsaw_weight)
        self.jigsaw_head = JigsawHead(encoder.dim, config.hidden_dim, config.embed_dim, config.projector_norm)
        self.register_buffer("seed", torch.randint(2**62, ()))

    def head(self, dim: int) -> nn.Module:
        dims = (dim, self.config.hidden_dim, self.config.embed_dim)
        return mlp(dims, norm=self.config.projector_norm, hidden_bias=True, last_bias=True)

    def forward(self, batch: Batch) -> Embeddings:
        """Queries of all views but view 1 and the jigsaw's picture, each (b, 3, H, W), and that of the pieces."""
        picture = batch.num_large - 1 if batch.num_large > 2 else 0
        views = [view for place, view in enumerate(batch.views) if place == 0 or place not in (1, picture)]
        q_bvd = embed_views(self.encoder, self.projector, views, self.config.view_forward)
        h = self.encoder(pieces(batch.views[picture], self.seed, batch.ids, batch.progress))
        jigsaw = self.jigsaw_head(h, self.seed, batch.ids, batch.progress)
        return Embeddings(torch.cat([q_bvd, jigsaw[:, None]], dim=1))

    def criterion(self, out: Embeddings, targets: Targets, batch: Batch) -> Losses:  # type: ignore[override]
        """Both losses of this rank's queries against the queue as it was before this batch."""
        weight = self.jigsaw_weight.at(batch.progress, self.data.epochs)
        views = super().criterion(Embeddings(out.q_bvd[:, :-1]), targets, batch)
        jigsaw = super().criterion(Embeddings(out.q_bvd[:, -1:]), targets, batch)
        return Losses(
            weight * jigsaw.loss + (1 - weight) * views.loss,
            views.accuracy,
            views.positive_cosine,
            jigsaw.loss.detach(),
            math.log(self.config.queue_size + 1) - views.loss.detach(),
        )
