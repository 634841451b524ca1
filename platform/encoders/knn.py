"""How good are embeddings: weighted nearest neighbours against labels, and two measures without labels."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike
from torch import Tensor

CHUNK_BYTES = 64_000_000  # of float32 similarities held at a time


@contextmanager
def _exact_float32() -> Iterator[None]:
    """No bf16 or tf32 inside float32 products, whatever the process has chosen for training."""
    chosen = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(chosen)


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
    votes: the lower class wins. So the answer depends on nothing but the arguments.

    Args:
        bank: (N, d) embeddings, any scale; normalised here. bank_labels: (N,) integers.
        queries: (M, d); the bank itself when `exclude_self` (row i is then no neighbour of query i).
        k: neighbours, cut to N (N - 1 with exclude_self). temperature: T > 0.
    Returns: (M,) int64 on the bank's device.
    Raises ValueError: no neighbour left, or exclude_self with M != N.
    """
    rows = F.normalize(torch.as_tensor(bank).float(), dim=1)
    asked = F.normalize(torch.as_tensor(queries).float().to(rows.device), dim=1)
    bank_labels = torch.as_tensor(bank_labels).to(rows.device, torch.int64)
    classes, labels = bank_labels.unique(return_inverse=True)  # ascending; their numbers may have gaps
    k = min(k, len(rows) - exclude_self)
    if k < 1 or (exclude_self and len(asked) != len(rows)):
        raise ValueError(f"kNN needs a neighbour a query: bank {len(rows)}, queries {len(asked)}, k {k}")
    chunk = max(1, CHUNK_BYTES // (4 * len(rows)))
    votes = torch.zeros(len(asked), len(classes), dtype=torch.float64, device=rows.device)
    with _exact_float32(), torch.autocast(rows.device.type, enabled=False):
        for start in range(0, len(asked), chunk):
            similarity = asked[start : start + chunk] @ rows.T
            if exclude_self:
                similarity.diagonal(start).fill_(float("-inf"))
            s, neighbours = _nearest(similarity, k)
            weights = (s.double() / temperature).exp()
            votes[start : start + chunk].scatter_add_(1, labels[neighbours], weights)
    return classes[votes.argmax(dim=1)]  # the first of equal maxima


def _nearest(similarity: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of each row and their columns, both (m, k); among equals the lower column."""
    s, columns = similarity.topk(k, dim=1)
    # topk picks any of the equals at the boundary: those rows (duplicated images) are sorted in full
    tied = ((similarity >= s[:, -1:]).sum(dim=1) > k).nonzero().flatten()
    if len(tied):
        ordered, order = similarity[tied].sort(dim=1, descending=True, stable=True)
        s[tied], columns[tied] = ordered[:, :k], order[:, :k]
    return s, columns


@torch.no_grad()
def effective_rank(features: ArrayLike | Tensor) -> float:
    """RankMe: exp of the entropy of the normalised singular values of (rows, d) features; 1 .. min(rows, d).

    Garrido et al. 2023, arXiv:2210.02885, eq. 2-3. Compare it only at equal rows and d. NaN when a feature
    is not finite.
    """
    matrix = torch.as_tensor(features).float()
    if not torch.isfinite(matrix).all():
        return float("nan")
    singular = torch.linalg.svdvals(matrix).double()
    p = singular / singular.sum().clamp_min(torch.finfo(torch.float64).tiny) + 1e-7
    return float((-p * p.log()).sum().exp())


@torch.no_grad()
def embedding_std(features: ArrayLike | Tensor) -> float:
    """Mean over dimensions of the std over rows of the L2-normalised (rows, d) features.

    About 1 / sqrt(d) for spread-out embeddings, 0 when all are the same (SimSiam, arXiv:2011.10566, 4.1).
    """
    unit = F.normalize(torch.as_tensor(features).float(), dim=1)
    return float(unit.std(dim=0, correction=0).mean())
