"""Prototypes: unit vectors that embeddings are compared with, and how often each is used."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import collectives
from .multi_crop import directed
from .precision import full


class Prototypes(nn.Module):
    """K trained directions; scores are cosines (SwAV, Caron et al. 2020, arXiv:2006.09882, section 3.1).

    The official code sets the rows to unit norm before each step; here they are normalised in the forward, for
    an optimiser that keeps its own copy of the weights (ZeRO) would lose what is written into them. From unit
    rows the direction of a step is the same to first order in the learning rate.
    """

    def __init__(self, dim: int, number: int) -> None:
        super().__init__()
        weight = nn.Linear(dim, number, bias=False).weight.detach()
        self.weight = nn.Parameter(F.normalize(weight, dim=1))

    def forward(self, z: Tensor) -> Tensor:
        """(..., dim), not normalised -> (..., K) cosines, at least fp32 whatever autocast says."""
        with torch.autocast(z.device.type, enabled=False):
            return F.linear(F.normalize(full(z), dim=-1), F.normalize(full(self.weight), dim=1))


def cross_entropies(codes: Tensor, log_p: Tensor) -> Tensor:
    """(b, T, K) codes of full-size views and (b, V, K) log-probabilities of all views -> (b, terms).

    -sum_k code^t_k log p^s_k for each full-size view t and every other view s, as `multi_crop.directed`.
    """
    all_pairs = -torch.einsum("btk,bsk->bts", codes, log_p)
    t, s = (list(views) for views in zip(*directed(codes.shape[1], log_p.shape[1])))
    return all_pairs[:, t, s]


@torch.no_grad()
def use(p: Tensor) -> Tensor:
    """(n, K) assignments of this rank -> entropy of their mean over all ranks / ln K, 0-d: 1 when all are used alike.

    Collective.
    """
    mean = collectives.mean(p.mean(dim=0))
    return torch.special.entr(mean).sum() / math.log(max(2, p.shape[1]))
