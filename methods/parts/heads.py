"""Projectors and predictors."""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

from torch import nn

from .norms import NormName, StandardisedLinear, norm_1d

RELU = partial(nn.ReLU, inplace=True)


def mlp(
    dims: Sequence[int],
    *,
    norm: NormName,
    hidden_bias: bool,
    last_bias: bool,
    activation: Callable[[], nn.Module] = RELU,
) -> nn.Sequential:
    """(n, dims[0]) -> (n, dims[-1]): Linear [norm] activation for every hidden width, then one Linear."""
    linear = StandardisedLinear if norm == "group_ws" else nn.Linear
    layers: list[nn.Module] = []
    for width_in, width_out in pairwise(dims[:-1]):
        layers.append(linear(width_in, width_out, bias=hidden_bias))
        if norm != "none":
            layers.append(norm_1d(norm, width_out))
        layers.append(activation())
    return nn.Sequential(*layers, linear(dims[-2], dims[-1], bias=last_bias))


def scale_norm(norm: NormName, dim: int) -> nn.Module:
    """A norm with a gain and without an offset."""
    module = norm_1d(norm, dim)
    if norm != "none":
        module.register_parameter("bias", None)
    return module


def bare_norm(norm: NormName, dim: int) -> nn.Module:
    """A norm with neither gain nor offset."""
    module = scale_norm(norm, dim)
    if norm != "none":
        module.register_parameter("weight", None)
    return module
