"""How much of their space embeddings use: two measures that need no labels."""

import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike
from torch import Tensor


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
