"""InfoNCE: pick the positive among all candidates (van den Oord et al. 2018, arXiv:1807.03748, eq. 4)."""

import torch
import torch.nn.functional as F
from torch import Tensor


def info_nce(logits: Tensor, positive: Tensor) -> tuple[Tensor, Tensor]:
    """Mean loss and accuracy, both 0-d.

    Args:
        logits: (a, C) similarities divided by the temperature; -inf leaves a candidate out.
        positive: (a,) int64 column of each anchor's positive.
    Returns: mean of -log softmax(logits)[positive]; share of anchors whose positive is ahead of every other
        candidate (a tie is a miss, so that a collapsed encoder scores 0).
    """
    with torch.no_grad():
        at_least = logits >= logits.gather(1, positive[:, None])
        accuracy = (at_least.sum(dim=1) == 1).to(logits.dtype).mean()
    return F.cross_entropy(logits, positive), accuracy
