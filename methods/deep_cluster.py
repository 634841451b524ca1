"""DeepCluster: classify images by the cluster that k-means found for them among the features of the whole set.

Caron et al. 2018, arXiv:1807.05520, eq. 1-2 and section 3.3, as the official code (facebookresearch/deepcluster). Before
each epoch: representations f of all training samples in eval mode, without augmentation; principal components,
whitened, unit length; k-means; a new linear classifier W. With the image's cluster y then
    L = weighted mean over images of -log softmax(W f(x))[y].                                       (eq. 1)
Against the trivial solution of one large cluster the paper draws images evenly over clusters (section 3.3). Here each
sample comes once an epoch, in the order of the plan, and an image weighs 1 / (size of its cluster): the same objective
in expectation, and a resumed run sees the same samples. The official code takes features before the last ReLU of
AlexNet or VGG, and trains W by an optimiser of its own without momentum; here features are those of any encoder, and W's
momentum begins at zero in each epoch. Its fixed Sobel filters are `encoder.edges`.

Tune first: clusters (ten times the classes in the paper), learning rate; follow `agreement` with the last epoch.

Shape suffixes: b = images on this rank, v = views, d = width of the encoder, k = clusters.
"""

from collections.abc import Collection
from typing import ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import BaseModel, Field, PositiveInt
from torch import Tensor, nn

from . import collectives
from .method import About, Batch, DataFacts, Encoder, Method, Needs, Sweep, at_least
from .parts.backbones import ZeroInit
from .parts.forwarding import VIEW_FORWARD, ViewForward, embed_views
from .parts.kmeans import UNSEEN, agreement, kmeans, table, whiten
from .parts.precision import full

INITIAL_STD = 0.01  # of the classifier's weights


class DeepClusterConfig(BaseModel, frozen=True, extra="forbid", strict=True):
    zero_init_residual: ClassVar[ZeroInit] = "none"

    name: Literal["deep_cluster"] = "deep_cluster"
    clusters: int = Field(10000, ge=2, description="k, the number of clusters.")
    whitened_dim: PositiveInt = Field(256, description="Principal components that are clustered.")
    iterations: PositiveInt = Field(20, description="Rounds of k-means before each epoch.")
    view_forward: ViewForward = Field("joint", description=VIEW_FORWARD)


class Embeddings(NamedTuple):
    h_bvd: Tensor  # representations
    logits_bvk: Tensor


class Losses(NamedTuple):
    loss: Tensor
    accuracy: Tensor  # share of views that are classified as their image's cluster
    agreement: (
        Tensor  # of this epoch's clusters with the last one's, normalised mutual information; 0 in the first
    )
    clusters_used: Tensor  # share of clusters that have a sample


class DeepCluster(Method[DeepClusterConfig, Embeddings, tuple[()]]):
    """Encoder and classifier; each sample's cluster and weight."""

    about: ClassVar[About] = About(
        2018, "clustering", "1 or more views; whole-set features, k-means an epoch"
    )
    needs: ClassVar[Needs] = Needs(at_least(1))
    labels: Tensor  # (num_ids,) int64
    sizes: Tensor  # (k,) int64 samples of each cluster
    agreed: Tensor  # 0-d

    def __init__(self, config: DeepClusterConfig, encoder: Encoder, data: DataFacts) -> None:
        """Raises ValueError: more clusters than training samples."""
        super().__init__(config, encoder, data)
        if config.clusters > data.num_samples:
            raise ValueError(
                f"method.clusters={config.clusters}: there are {data.num_samples} training samples"
            )
        self.classifier = nn.Linear(encoder.dim, config.clusters)
        self.register_buffer("labels", torch.full((data.num_ids,), UNSEEN))
        self.register_buffer("sizes", torch.zeros(config.clusters, dtype=torch.int64))
        self.register_buffer("agreed", torch.zeros(()))

    def forward(self, batch: Batch) -> Embeddings:
        """Representations of the views, each (b, 3, H, W), and what the classifier makes of them."""
        h_bvd = embed_views(self.encoder, nn.Identity(), batch.views, self.config.view_forward)
        return Embeddings(h_bvd, self.classifier(h_bvd))

    def criterion(self, out: Embeddings, targets: tuple[()], batch: Batch) -> Losses:
        """Cross-entropy with every cluster of the global batch weighed by what it is of the set (eq. 1); collective."""
        logits = full(out.logits_bvk)
        b, v, _ = logits.shape
        labels_b = self.labels[batch.ids]
        there = labels_b != UNSEEN
        sizes_b = self.sizes[labels_b.clamp(min=0)].clamp(min=1).to(logits.dtype)
        weights_b = torch.where(there, 1 / sizes_b, 0)
        total = collectives.mean(weights_b.sum())  # ranks may have other clusters
        weights_b = weights_b / torch.where(total > 0, total, 1)
        labels = labels_b.repeat_interleave(v)
        entropies = F.cross_entropy(logits.flatten(0, 1), labels, ignore_index=UNSEEN, reduction="none")
        loss = (entropies.unflatten(0, (b, v)).mean(dim=1) * weights_b).sum()
        accuracy = (logits.argmax(dim=-1) == labels_b[:, None]).to(logits.dtype).mean()
        used = (self.sizes > 0).to(logits.dtype).mean()
        return Losses(loss, accuracy, self.agreed.to(logits.dtype), used)

    @torch.no_grad()
    def before_epoch(self, epoch: int, sweep: Sweep) -> Collection[nn.Parameter]:
        """New clusters, and a new classifier, with which the optimiser begins anew."""
        device = self.labels.device
        parts = list(sweep())
        ids = torch.cat([part for part, _ in parts]) if parts else self.labels[:0]
        h = (
            torch.cat([part for _, part in parts])
            if parts
            else torch.zeros(0, self.encoder.dim, device=device)
        )
        features = F.normalize(whiten(full(h), self.config.whitened_dim), dim=1)
        clusters = kmeans(
            features, ids, self.config.clusters, iterations=self.config.iterations, spherical=False
        )
        labels = table(ids, clusters.labels, len(self.labels))
        both = (labels != UNSEEN) & (self.labels != UNSEEN)
        if both.any():
            self.agreed.copy_(agreement(labels[both], self.labels[both]))
        self.labels.copy_(labels)
        self.sizes.copy_(torch.bincount(labels[labels != UNSEEN], minlength=len(self.sizes)))
        self.classifier.weight.copy_(torch.randn(self.classifier.weight.shape) * INITIAL_STD)
        self.classifier.bias.zero_()
        return list(self.classifier.parameters())
