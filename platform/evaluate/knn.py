"""Weighted nearest neighbours: the class of an image by a vote of those that the encoder puts beside it."""

import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike
from torch import Tensor

CHUNK_BYTES = 64_000_000  # of float64 similarities held at a time
GRID = 2.0**26  # see knn_predict


@torch.no_grad()
def knn_predict(
    bank: ArrayLike | Tensor,
    bank_labels: ArrayLike | Tensor,
    queries: ArrayLike | Tensor,
    *,
    k: int,
    temperature: float,
    exclude_self: bool = False,
) -> Tensor:
    """Class of each query by a vote of its k nearest bank rows in cosine similarity s, weight exp(s / T).

    Wu et al. 2018, arXiv:1805.01978, section 3.4. Equal similarities: the lower row comes first; equal
    votes: the lower class wins. So the answer depends on nothing but the arguments: unit vectors are rounded
    to multiples of 2**-26, hence products are multiples of 2**-52 and, since partial sums stay below 2 by
    Cauchy-Schwarz, every float64 dot product is exact in any order of summation. Equal rows get equal
    similarities whatever the shapes, and s is the cosine to about 1e-8.

    Args:
        bank: (N, d) embeddings, any scale; normalised here. bank_labels: (N,) integers.
        queries: (M, d); the bank itself when `exclude_self` (row i is then no neighbour of query i).
        k: neighbours, cut to N (N - 1 with exclude_self). temperature: T > 0.
    Returns: (M,) int64 on the bank's device.
    Raises ValueError: no neighbour left, or exclude_self with M != N.
    """
    rows = _on_grid(torch.as_tensor(bank))
    asked = _on_grid(torch.as_tensor(queries).to(rows.device))
    bank_labels = torch.as_tensor(bank_labels).to(rows.device, torch.int64)
    classes, labels = bank_labels.unique(return_inverse=True)  # ascending; their numbers may have gaps
    k = min(k, len(rows) - exclude_self)
    if k < 1 or (exclude_self and len(asked) != len(rows)):
        raise ValueError(f"kNN needs a neighbour a query: bank {len(rows)}, queries {len(asked)}, k {k}")
    chunk = max(1, CHUNK_BYTES // (8 * len(rows)))
    votes = torch.zeros(len(asked), len(classes), dtype=torch.float64, device=rows.device)
    for start in range(0, len(asked), chunk):
        similarity = asked[start : start + chunk] @ rows.T
        if exclude_self:
            similarity.diagonal(start).fill_(float("-inf"))
        s, neighbours = _nearest(similarity, k)
        votes[start : start + chunk].scatter_add_(1, labels[neighbours], (s / temperature).exp())
    return classes[votes.argmax(dim=1)]  # the first of equal maxima


def _on_grid(vectors: Tensor) -> Tensor:
    """Unit vectors, float64, rounded to multiples of 1 / GRID."""
    return F.normalize(vectors.double(), dim=1).mul_(GRID).round_().div_(GRID)


def _nearest(similarity: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of each row and their columns, both (m, k); among equals the lower column."""
    s, columns = similarity.topk(k, dim=1)
    # topk picks any of the equals at the boundary: those rows (duplicated images) are sorted in full
    tied = ((similarity >= s[:, -1:]).sum(dim=1) > k).nonzero().flatten()
    if len(tied):
        ordered, order = similarity[tied].sort(dim=1, descending=True, stable=True)
        s[tied], columns[tied] = ordered[:, :k], order[:, :k]
    return s, columns
