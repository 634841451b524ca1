"""Contrastive Clustering: the rows of a batch are images, its columns are clusters, and both are contrasted.

Li et al. 2020, arXiv:2009.09687, eq. 1-7. Of view v let Z^v be the rows of the instance head and Y^v (B x M) the softmax of
the cluster head. Columns y of Y stand for clusters as rows of Z for images:
    L_ins = SimCLR's loss of the rows z, temperature 0.5                                               (eq. 2-3)
    l(y_c) = -log( exp(cos(y_c, y'_c) / T) / sum over the other 2M - 1 columns exp(cos(y_c, y) / T) )  (eq. 5)
    L = L_ins + mean over 2M columns of l + sum_v ( log M + sum_c p_c^v log p_c^v )                    (eq. 6-7)
with p^v the mean over images of Y^v.
The last term is 0 when all clusters are used alike, as in the official code, whose temperatures these are. There columns
are of one worker's images and p log p is undefined at p = 0; here they are of all workers' and it is 0.

Tune first: learning rate, clusters (the code: the number of classes) and the instance head's temperature.

Shape suffixes: b = images on this rank, v = views, d = embed_dim, m = clusters (M).
"""

import math
from typing import ClassVar, Literal, NamedTuple

import torch
from pydantic import BaseModel, Field, PositiveInt
from torch import Tensor

from . import collectives
from .method import About, Batch, DataFacts, Encoder, Method
from .parts.backbones import ZeroInit
from .parts.contrast import info_nce
from .parts.forwarding import VIEW_FORWARD, ViewForward, embed_views
from .parts.heads import mlp
from .parts.precision import full
from .schedule import Positive, scheduled
from .simclr import nt_xent

SMALLEST = 1e-8  # product of the lengths of two columns


class ContrastiveClusteringConfig(BaseModel, frozen=True, extra="forbid", strict=True):
    zero_init_residual: ClassVar[ZeroInit] = "none"

    name: Literal["contrastive_clustering"] = "contrastive_clustering"
    hidden_dim: PositiveInt = Field(512, description="Hidden width of both heads.")
    embed_dim: PositiveInt = Field(128, description="Width of the instance head's embedding.")
    clusters: PositiveInt = Field(10, description="M.")
    temperature: Positive = Field(
        0.5, description="T of instances; cosine similarities are divided by it; a number or a schedule."
    )
    cluster_temperature: Positive = Field(1.0, description="T of clusters; a number or a schedule.")
    view_forward: ViewForward = Field("per_view", description=VIEW_FORWARD)


class Embeddings(NamedTuple):
    z_bvd: Tensor  # instance head's output, not normalised
    c_bvm: Tensor  # cluster head's output, before the softmax


class Losses(NamedTuple):
    loss: Tensor
    accuracy: Tensor  # share of instances that find their other view
    positive_cosine: Tensor
    cluster_loss: Tensor
    unevenness: Tensor  # log M minus the entropy of the clusters' use, summed over views


class ContrastiveClustering(Method[ContrastiveClusteringConfig, Embeddings, tuple[()]]):
    """Encoder, instance head and cluster head."""

    about: ClassVar[About] = About(2020, "clustering", "2 views")

    def __init__(self, config: ContrastiveClusteringConfig, encoder: Encoder, data: DataFacts) -> None:
        super().__init__(config, encoder, data)
        self.temperature = scheduled(config.temperature)
        self.cluster_temperature = scheduled(config.cluster_temperature)
        self.instance_head, self.cluster_head = (
            mlp((encoder.dim, config.hidden_dim, dim), norm="none", hidden_bias=True, last_bias=True)
            for dim in (config.embed_dim, config.clusters)
        )

    def forward(self, batch: Batch) -> Embeddings:
        """Embed two views, each (b, 3, H, W)."""
        both = embed_views(self.encoder, self._heads, batch.views, self.config.view_forward)
        return Embeddings(*both.split([self.config.embed_dim, self.config.clusters], dim=-1))

    def _heads(self, h: Tensor) -> Tensor:
        return torch.cat([self.instance_head(h), self.cluster_head(h)], dim=1)

    def criterion(self, out: Embeddings, targets: tuple[()], batch: Batch) -> Losses:
        """Both contrasts over the global batch (eq. 7); collective."""
        epochs = self.data.epochs
        instances = nt_xent(full(out.z_bvd), self.temperature.at(batch.progress, epochs))
        y_bvm = full(out.c_bvm).softmax(dim=-1)
        clusters = column_contrast(y_bvm, self.cluster_temperature.at(batch.progress, epochs))
        uneven = unevenness(y_bvm)
        return Losses(
            instances.loss + clusters + uneven,
            instances.accuracy,
            instances.positive_cosine,
            clusters.detach(),
            uneven.detach(),
        )


def column_contrast(y_bvm: Tensor, temperature: float) -> Tensor:
    """Mean of eq. 5 over the 2M columns of two views, 0-d. Collective: only the columns' products leave a rank."""
    m = y_bvm.shape[2]
    columns = y_bvm.flatten(1)  # (b, 2m), view 0 first
    products = collectives.sum(columns.T @ columns)
    lengths = products.diagonal().clamp(min=SMALLEST**2).sqrt()
    cosines = products / (lengths[:, None] * lengths).clamp(min=SMALLEST)
    itself = torch.eye(2 * m, dtype=torch.bool, device=cosines.device)
    positive = torch.arange(2 * m, device=cosines.device).roll(m)
    return info_nce((cosines / temperature).masked_fill(itself, float("-inf")), positive)[0]


def unevenness(y_bvm: Tensor) -> Tensor:
    """sum_v (log M - entropy of the clusters' use), 0-d; 0 to V log M. Collective."""
    p_vm = collectives.mean(y_bvm.mean(dim=0))
    return p_vm.shape[0] * math.log(p_vm.shape[1]) + (p_vm * p_vm.clamp(min=1e-12).log()).sum()
