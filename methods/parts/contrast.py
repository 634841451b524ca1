"""InfoNCE: pick the positive among all candidates (van den Oord et al. 2018, arXiv:1807.03748, eq. 4)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def info_nce(logits: Tensor, positive: Tensor, weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Mean loss and accuracy, both 0-d.

    Args:
        logits: (a, C) similarities divided by the temperature; -inf leaves a candidate out.
        positive: (a,) int64 column of each anchor's positive.
        weights: (a,) of the anchors, in the place of means; default: 1 / a.
    Returns: mean of -log softmax(logits)[positive]; share of anchors whose positive is ahead of every other
        candidate (a tie is a miss, so that a collapsed encoder scores 0).
    """
    found = hits(logits, positive)
    if weights is None:
        return F.cross_entropy(logits, positive), found.mean()
    losses = F.cross_entropy(logits, positive, reduction="none")
    return (losses * weights).sum(), (found * weights).sum()


@torch.no_grad()
def hits(logits: Tensor, positive: Tensor) -> Tensor:
    """(a,) 1 where the positive is ahead of every other candidate, else 0, as `info_nce`."""
    at_least = logits >= logits.gather(1, positive[:, None])
    return (at_least.sum(dim=1) == 1).to(logits.dtype)


def scores(anchors: Tensor, positives: Tensor, negatives: Tensor, temperature: float) -> Tensor:
    """Logits (a, 1 + K), the positive's in column 0.

    anchors, positives: (a, d); negatives: (K, d) for all anchors (a queue), or (a, K, d) for each its own (rows
    drawn from a bank).
    """
    positive = (anchors * positives).sum(dim=1, keepdim=True)
    if negatives.dim() == 2:
        negative = anchors @ negatives.T
    else:
        negative = (negatives @ anchors[:, :, None]).squeeze(2)
    return torch.cat([positive, negative], dim=1) / temperature


def against(
    anchors: Tensor, positives: Tensor, negatives: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """InfoNCE of anchors with one positive each and negatives as in `scores`: mean loss and accuracy, both 0-d."""
    logits = scores(anchors, positives, negatives, temperature)
    return info_nce(logits, torch.zeros(len(logits), dtype=torch.int64, device=logits.device))


def nce(logits: Tensor, log_normaliser: Tensor, population: int, weights: Tensor | None = None) -> Tensor:
    """Noise-contrastive estimation, 0-d: tell each anchor's positive from m draws, uniform over a population.

    InstDisc, arXiv:1805.01978, eq. 5-7. logits: (a, 1 + m), the positive's in column 0; with P = exp(logit) / Z:
    -mean [ log P_0 / (P_0 + m / n) + sum_j log (m / n) / (P_j + m / n) ]. log_normaliser: log Z, 0-d;
    weights: (a,) in the place of the mean.
    """
    odds = logits - log_normaliser - math.log((logits.shape[1] - 1) / population)
    signs = torch.ones_like(odds[0])
    signs[1:] = -1
    losses = -F.logsigmoid(odds * signs).sum(dim=1)
    return losses.mean() if weights is None else (losses * weights).sum()
