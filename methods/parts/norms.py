"""Which norm a network has: batch statistics, or statistics of each sample alone.

group_ws is group norm with standardised weights, as in BYOL without batch statistics (Richemond et al. 2020,
arXiv:2010.10241) and Big Transfer (arXiv:1912.11370).
"""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

NormName = Literal["batch", "layer", "group_ws", "none"]
NORM = "batch; layer: over a sample; group_ws: groups of channels, and standardised weights; none."
EPSILON = 1e-5  # added to the standard deviation of a weight
GROUPS, AT_LEAST = 32, 4  # groups of a norm; channels of a group in narrow networks


def norm_1d(name: NormName, dim: int) -> nn.Module:
    """Of (n, dim)."""
    if name == "layer":
        return nn.LayerNorm(dim)
    return nn.BatchNorm1d(dim) if name == "batch" else norm_2d(name, dim)


def norm_2d(name: NormName, channels: int) -> nn.Module:
    """Of (n, channels, H, W); layer: over all of a sample, gain and offset by channel."""
    if name == "batch":
        return nn.BatchNorm2d(channels)
    if name == "none":
        return nn.Identity()
    return nn.GroupNorm(1 if name == "layer" else groups(channels), channels)


def groups(channels: int) -> int:
    """The largest number up to GROUPS that divides the channels and leaves AT_LEAST to each group, else 1."""
    fitting = (g for g in range(GROUPS, 1, -1) if channels % g == 0 and channels // g >= AT_LEAST)
    return next(fitting, 1)


def standardised(weight: Tensor) -> Tensor:
    """(out, ...): zero mean and unit standard deviation of each output's weights."""
    rows = weight.flatten(1)
    centred = rows - rows.mean(dim=1, keepdim=True)
    return (centred / (rows.std(dim=1, correction=0, keepdim=True) + EPSILON)).view_as(weight)


class StandardisedLinear(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, standardised(self.weight), self.bias)


class StandardisedConv2d(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        return self._conv_forward(input, standardised(self.weight), self.bias)


def replace_batch_norms(network: nn.Module, name: NormName) -> None:
    """Another norm in the place of every nn.BatchNorm2d; the weights' names and initial values stay."""
    for parent in list(network.modules()):
        for key, child in list(parent.named_children()):
            if isinstance(child, nn.BatchNorm2d):
                setattr(parent, key, norm_2d(name, child.num_features))
            elif name == "group_ws" and type(child) is nn.Conv2d:
                child.__class__ = StandardisedConv2d  # nothing but the forward differs
