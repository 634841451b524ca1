"""Sinkhorn-Knopp: soft assignments that use every prototype equally often over the global batch."""

import torch
from torch import Tensor

from .. import collectives
from .precision import full


@torch.no_grad()
def sinkhorn(scores: Tensor, *, epsilon: float, iterations: int, hard: bool = False) -> Tensor:
    """Codes of this rank's images, balanced over those of all ranks.

    SwAV, Caron et al. 2020, arXiv:2006.09882, eq. 3-5; Cuturi 2013, arXiv:1306.0895. The largest score of all is
    taken off before the exponential, which changes nothing but that it cannot overflow.

    Args:
        scores: (n, K) similarities of this rank's images to the prototypes; n may differ among ranks.
        epsilon: weight of the entropy, > 0; smaller is sharper.
        iterations: rounds of normalising columns, then rows, >= 1.
        hard: each row one-hot at its largest code.
    Returns: (n, K) at least fp32, without gradient; each row sums to 1.
    Collective: one vector of K numbers a round.
    """
    s = full(scores.detach())
    num_prototypes = s.shape[1]
    largest = s.amax() if len(s) else s.new_tensor(-torch.inf)
    q = ((s - collectives.maximum(largest)) / epsilon).exp()
    for _ in range(iterations):
        q = q / (collectives.sum(q.sum(dim=0)) * num_prototypes)
        q = q / q.sum(dim=1, keepdim=True)  # times 1 / N in the paper: it goes with the next column sums
    if hard:
        q = torch.zeros_like(q).scatter_(1, q.argmax(dim=1, keepdim=True), 1.0)
    return q
