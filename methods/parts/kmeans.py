"""k-means over rows that lie on all ranks, plain or spherical, and what goes with it: whitening, agreement.

What is found depends on rows and ids, not on how they lie on the ranks (but for rounding), and on torch's global
generator, which every rank must have in the same state.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import collectives

UNSEEN = -100  # the label of a sample that has none
CHUNK = 4096  # rows compared with all centroids at a time
NUDGE = 1 / 1024  # by which the halves of a split cluster differ, as in faiss


class Clusters(NamedTuple):
    centroids: Tensor  # (k, d), the same on all ranks; of unit length if spherical
    labels: Tensor  # (n,) int64 of this rank's rows


@torch.no_grad()
def kmeans(rows: Tensor, ids: Tensor, k: int, *, iterations: int, spherical: bool) -> Clusters:
    """Lloyd's algorithm from k rows drawn at random; after the last centroids a last assignment.

    plain: to the nearest centroid; an empty cluster takes half of a large one, drawn by size (faiss). spherical:
    unit rows to the largest dot product, centroids of unit length; an empty cluster keeps its old centroid (SwAV's
    DeepCluster v2).

    Args:
        rows: (n, d) at least fp32 on this rank; n may differ among ranks.
        ids: (n,) int64, unique over all ranks.
        k: number of clusters, at most the rows of all ranks.
    Raises ValueError: fewer rows than clusters. Collective.
    """
    centroids = _drawn(rows, ids, k)
    for _ in range(iterations):
        labels = _assign(rows, centroids, spherical)
        sums, counts = _sums(rows, labels, k)
        means = sums / counts.clamp(min=1)[:, None]
        if spherical:
            means = F.normalize(means, dim=1)
        centroids = torch.where(counts[:, None] > 0, means, centroids)
        if not spherical:
            _split(centroids, counts)
    return Clusters(centroids, _assign(rows, centroids, spherical))


def _drawn(rows: Tensor, ids: Tensor, k: int) -> Tensor:
    """(k, d): rows of k ids of all ranks, drawn without replacement."""
    everyone = gather_uneven(ids).sort().values
    if len(everyone) < k:
        raise ValueError(f"k-means: {k} clusters of {len(everyone)} samples; take fewer clusters")
    chosen = everyone[torch.randperm(len(everyone))[:k].to(ids.device)]
    order = ids.argsort()
    centroids = rows.new_zeros(k, rows.shape[1])
    if len(ids):
        at = torch.searchsorted(ids[order], chosen).clamp(max=len(ids) - 1)
        own = ids[order][at] == chosen
        centroids[own] = rows[order[at[own]]]
    return collectives.sum(centroids)


def _assign(rows: Tensor, centroids: Tensor, spherical: bool) -> Tensor:
    offsets = 0 if spherical else centroids.square().sum(dim=1) / 2
    labels = [(part @ centroids.T - offsets).argmax(dim=1) for part in rows.split(CHUNK) if len(part)]
    return torch.cat(labels) if labels else torch.zeros(0, dtype=torch.int64, device=rows.device)


def _sums(rows: Tensor, labels: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Sum of each cluster's rows, and their number, over all ranks; as products, which are the same in every run."""
    sums, counts = rows.new_zeros(k, rows.shape[1]), rows.new_zeros(k)
    for part, own in zip(rows.split(CHUNK), labels.split(CHUNK), strict=True):
        member = F.one_hot(own, k).to(rows.dtype)
        sums += member.T @ part
        counts += member.sum(dim=0)
    return collectives.sum(sums), collectives.sum(counts)


def _split(centroids: Tensor, counts: Tensor) -> None:
    """Each empty cluster and a large one become two near copies of the large one; in place."""
    sizes = counts.double().cpu()
    sign = torch.ones_like(centroids[0])
    sign[1::2] = -1
    for empty in (sizes == 0).nonzero().flatten().tolist():
        chances = (sizes - 1).clamp(min=0)
        if not chances.any():  # nothing can be divided
            return
        large = int(torch.multinomial(chances, 1))
        centroids[empty] = centroids[large] * (1 + NUDGE * sign)
        centroids[large] *= 1 - NUDGE * sign
        sizes[empty] = sizes[large] / 2
        sizes[large] /= 2


@torch.no_grad()
def whiten(rows: Tensor, dim: int) -> Tensor:
    """(n, d) of this rank -> (n, dim): principal components of all ranks' rows, each of unit variance.

    Directions without variance give zeros; dim is cut to d. Collective.
    """
    total = collectives.sum(torch.cat([rows.new_tensor([len(rows)]), rows.sum(dim=0)]).double())
    count, mean = total[0], total[1:] / total[0]
    covariance = rows.new_zeros(rows.shape[1], rows.shape[1], dtype=torch.float64)
    for part in rows.split(CHUNK):
        centred = part.double() - mean
        covariance += centred.T @ centred
    variances, directions = torch.linalg.eigh(collectives.sum(covariance) / count)
    variances, directions = variances.flip(0)[:dim], directions.flip(1)[:, :dim]
    there = variances > variances[0] * torch.finfo(rows.dtype).eps * len(mean)
    scale = torch.where(there, variances.clamp(min=0).rsqrt(), 0.0)
    return ((rows - mean.to(rows.dtype)) @ (directions * scale).to(rows.dtype)).to(rows.dtype)


def gather_uneven(x: Tensor) -> Tensor:
    """(n, ...) of each rank, n as it is, -> those of all, in rank order; collective."""
    counts = collectives.gather(torch.tensor([len(x)], device=x.device))
    padded = x.new_zeros(int(counts.max()), *x.shape[1:])
    padded[: len(x)] = x
    parts = collectives.gather(padded).split(len(padded))
    return torch.cat([part[:count] for part, count in zip(parts, counts.tolist(), strict=True)])


@torch.no_grad()
def agreement(a: Tensor, b: Tensor) -> Tensor:
    """Normalised mutual information of two labellings (n,) int64 of the same samples, 0-d, in [0, 1].

    2 I(a; b) / (H(a) + H(b)), as DeepCluster logs it; 1 where both have one cluster.
    """
    joint = a * (b.max() + 1) + b

    def entropy(labels: Tensor) -> Tensor:
        p = labels.unique(return_counts=True)[1].double() / len(labels)
        return torch.special.entr(p).sum()

    h_a, h_b = entropy(a), entropy(b)
    shared = h_a + h_b - entropy(joint)
    return torch.where(h_a + h_b > 0, 2 * shared / (h_a + h_b).clamp(min=math.ulp(1.0)), 1.0)


def table(ids: Tensor, labels: Tensor, num_ids: int) -> Tensor:
    """(num_ids,) int64 on all ranks: the label of each id that some rank has, UNSEEN elsewhere; collective."""
    shifted = torch.zeros(num_ids, dtype=torch.int64, device=ids.device)
    shifted[ids] = labels - UNSEEN
    return collectives.sum(shifted) + UNSEEN


def mean_over_labelled(values: Tensor, labels: Tensor) -> Tensor:
    """Mean of (n,) values over the rows of all ranks that have a label, 0 without any; collective.

    As a rank's part whose mean over ranks is that: ranks may have other numbers of labelled rows.
    """
    there = labels != UNSEEN
    count = collectives.mean(there.to(values.dtype).sum().detach())
    return torch.where(there, values, 0).sum() / count.clamp(min=1 / collectives.world_size())
