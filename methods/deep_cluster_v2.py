"""DeepCluster v2: predict the cluster that k-means found for one's own image from the last epoch's embeddings.

Caron et al. 2020, arXiv:2006.09882, appendix (DeepCluster-v2), as the official code (facebookresearch/swav,
main_deepclusterv2.py); Caron et al. 2018, arXiv:1807.05520. Before each epoch spherical k-means groups the bank's rows,
once for each of H heads, from starts of their own; with unit embeddings z, the unit centroids c of head h and the image's
cluster y_h:
    L = mean over heads, over views, small crops too, and over images, of -log softmax_k(z.c_k / T)[y_h].
The bank holds the embeddings of both full-size views of each sample as they were when it was last seen; head h groups
those of view h mod 2. Centroids do not learn. The official code fills the first bank with augmented views; here every
training sample is embedded as the monitor sees it, for both views. Samples that cannot be read have no cluster.

Tune first: clusters (more than classes), temperature.

Shape suffixes: b = images on this rank, v = views, the two full-size ones first, d = embed_dim, h = heads, k = clusters.
"""

from collections.abc import Collection
from typing import ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import BaseModel, Field, PositiveInt
from torch import Tensor, nn

from . import collectives
from .method import About, Batch, DataFacts, Encoder, Method, Needs, Sweep, ViewRule
from .parts.backbones import ZeroInit
from .parts.forwarding import VIEW_FORWARD, ViewForward, embed_views
from .parts.heads import mlp
from .parts.kmeans import UNSEEN, kmeans, mean_over_labelled, table
from .parts.norms import NORM, NormName
from .parts.precision import full
from .schedule import Positive, scheduled

BANKED = 2  # views whose embeddings are kept: the full-size ones


class DeepClusterV2Config(BaseModel, frozen=True, extra="forbid", strict=True):
    zero_init_residual: ClassVar[ZeroInit] = "none"

    name: Literal["deep_cluster_v2"] = "deep_cluster_v2"
    hidden_dim: PositiveInt = Field(2048, description="Hidden width of the projector.")
    embed_dim: PositiveInt = Field(128, description="Width of embeddings and centroids.")
    clusters: int = Field(3000, ge=2, description="K, the number of clusters of each head.")
    heads: PositiveInt = Field(3, description="H, the number of clusterings.")
    iterations: PositiveInt = Field(10, description="Rounds of k-means before each epoch.")
    temperature: Positive = Field(
        0.1, description="T; cosines to the centroids are divided by it; a number or a schedule."
    )
    projector_norm: NormName = Field("batch", description=NORM)
    view_forward: ViewForward = Field("joint", description=VIEW_FORWARD)


class Embeddings(NamedTuple):
    z_bvd: Tensor  # projector output, not normalised


class Losses(NamedTuple):
    loss: Tensor
    accuracy: Tensor  # share of predictions that are the image's cluster
    labelled: Tensor  # share of images that have one


class DeepClusterV2(Method[DeepClusterV2Config, Embeddings, tuple[()]]):
    """Encoder, projector; the bank, and centroids and labels of each head."""

    about: ClassVar[About] = About(
        2020, "clustering", "2 views and any number of small ones; bank, k-means an epoch"
    )
    needs: ClassVar[Needs] = Needs(ViewRule(BANKED, BANKED, small=True))
    bank: Tensor  # (2, num_ids, d) fp32 unit rows; zeros where a sample was never seen
    centroids: Tensor  # (h, k, d) fp32 unit rows
    labels: Tensor  # (h, num_ids) int64

    def __init__(self, config: DeepClusterV2Config, encoder: Encoder, data: DataFacts) -> None:
        """Raises ValueError: more clusters than training samples."""
        super().__init__(config, encoder, data)
        if config.clusters > data.num_samples:
            raise ValueError(
                f"method.clusters={config.clusters}: there are {data.num_samples} training samples"
            )
        self.temperature = scheduled(config.temperature)
        dims = (encoder.dim, config.hidden_dim, config.embed_dim)
        self.projector = mlp(dims, norm=config.projector_norm, hidden_bias=True, last_bias=True)
        self.register_buffer("bank", torch.zeros(BANKED, data.num_ids, config.embed_dim))
        self.register_buffer("centroids", torch.zeros(config.heads, config.clusters, config.embed_dim))
        self.register_buffer("labels", torch.full((config.heads, data.num_ids), UNSEEN))

    def forward(self, batch: Batch) -> Embeddings:
        """Embeddings of the views, each (b, 3, H, W)."""
        return Embeddings(embed_views(self.encoder, self.projector, batch.views, self.config.view_forward))

    def criterion(self, out: Embeddings, targets: tuple[()], batch: Batch) -> Losses:
        """Cross-entropy of every view against the image's cluster in each head; collective."""
        z_bvd = F.normalize(full(out.z_bvd), dim=-1)
        temperature = self.temperature.at(batch.progress, self.data.epochs)
        labels_hb = self.labels[:, batch.ids]
        losses, hits = [], []
        for centroids, labels in zip(self.centroids.to(z_bvd.dtype), labels_hb):
            logits = z_bvd @ centroids.T / temperature  # (b, v, k)
            target = labels[:, None].expand(logits.shape[:2])
            entropies = F.cross_entropy(
                logits.flatten(0, 1), target.flatten(), ignore_index=UNSEEN, reduction="none"
            )
            losses.append(mean_over_labelled(entropies, target.flatten()))
            hits.append(
                mean_over_labelled((logits.argmax(-1) == target).flatten().to(z_bvd.dtype), target.flatten())
            )
        labelled = (labels_hb != UNSEEN).to(z_bvd.dtype).mean()
        return Losses(torch.stack(losses).mean(), torch.stack(hits).mean(), labelled)

    @torch.no_grad()
    def after_step(self, out: Embeddings, targets: tuple[()], batch: Batch) -> None:
        """Keep the embeddings of the full-size views of all ranks."""
        ids = collectives.gather(batch.ids)
        z_btd = collectives.gather(F.normalize(full(out.z_bvd[:, :BANKED]), dim=-1))
        self._write(ids, z_btd.transpose(0, 1))

    @torch.no_grad()
    def before_epoch(self, epoch: int, sweep: Sweep) -> Collection[nn.Parameter]:
        """New clusters for every head; before the first epoch the bank is filled."""
        if epoch == 0:
            self._fill(sweep)
        for head in range(self.config.heads):
            bank = self.bank[head % BANKED]
            ids = bank.any(dim=1).nonzero().flatten()
            own = ids.tensor_split(collectives.world_size())[collectives.rank()]
            clusters = kmeans(
                bank[own], own, self.config.clusters, iterations=self.config.iterations, spherical=True
            )
            self.centroids[head] = clusters.centroids
            self.labels[head] = table(own, clusters.labels, len(bank))
        return ()

    def _fill(self, sweep: Sweep) -> None:
        """Embeddings of all training samples, each by one rank."""
        training = self.projector.training
        self.projector.eval()
        for ids, h in sweep():
            self._write(ids, F.normalize(full(self.projector(h)), dim=-1).expand(BANKED, -1, -1))
        self.projector.train(training)
        self.bank.copy_(collectives.sum(self.bank))

    def _write(self, ids: Tensor, rows: Tensor) -> None:
        """rows: (2, n, d); of an id that is there twice the last row stays."""
        place = torch.arange(len(ids), device=ids.device)
        last = torch.zeros(self.bank.shape[1], dtype=torch.int64, device=ids.device)
        last = last.scatter_reduce(0, ids, place, "amax")[ids].unique()
        self.bank[:, ids[last]] = rows[:, last].to(self.bank.dtype)
