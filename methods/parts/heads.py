"""Projectors and predictors."""

from collections.abc import Sequence
from itertools import pairwise

from torch import nn


def mlp(dims: Sequence[int], *, norm: bool, hidden_bias: bool, last_bias: bool) -> nn.Sequential:
    """(n, dims[0]) -> (n, dims[-1]): Linear [BatchNorm] ReLU for every hidden width, then one Linear."""
    layers: list[nn.Module] = []
    for width_in, width_out in pairwise(dims[:-1]):
        layers.append(nn.Linear(width_in, width_out, bias=hidden_bias))
        if norm:
            layers.append(nn.BatchNorm1d(width_out))
        layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers, nn.Linear(dims[-2], dims[-1], bias=last_bias))


def scale_norm(dim: int) -> nn.BatchNorm1d:
    """Batch norm with a gain and without an offset."""
    norm = nn.BatchNorm1d(dim)
    norm.register_parameter("bias", None)
    return norm
