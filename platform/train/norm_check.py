"""Which norm layers can take their statistics over groups of samples, found out before a run starts."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from vergence.methods.torchvision_shim import timm

KNOWN = "torch.nn.BatchNorm1d or 2d, timm's BatchNormAct2d, or norms without running statistics"
# BatchNorm1d has the forward of 2d
_FORWARDS = (nn.BatchNorm2d.forward, timm.layers.norm_act.BatchNormAct2d.forward)
_VALUES = 4096  # of a row that are compared, about
_ROUNDING = 0.05  # of the rows' norm: between forwards of two sizes, in bf16 through a deep network

Rows = dict[str, list[Tensor]]  # layer -> its input in each call of one forward, (R, values)


def is_groupable(layer: nn.Module | None) -> TypeGuard[_BatchNorm]:
    """Whether it normalises as nn.BatchNorm1d or 2d does, or as timm's norm with an activation."""
    return isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d) and type(layer).forward in _FORWARDS


def unknown(method: nn.Module) -> str | None:
    """A layer that keeps statistics over samples in another way than we replace, by name and type."""
    for name, layer in method.named_modules():
        keeps_statistics = isinstance(layer, _BatchNorm) or any(
            buffer.startswith("running_") for buffer, _ in layer.named_buffers(recurse=False)
        )
        if keeps_statistics and not is_groupable(layer):
            return f"{name} is a {type(layer).__module__}.{type(layer).__qualname__}"
        if keeps_statistics and layer.momentum is None:
            return f"{name} has momentum=None, a cumulative average"
    return None


@contextmanager
def recorded(method: nn.Module) -> Iterator[list[Rows]]:
    """Within it every forward of `method` adds what its norm layers were given."""
    forwards: list[Rows] = []

    def record(name: str, x: Tensor) -> None:
        values = x.detach().movedim(1, -1).flatten(1)  # no copy of a channels_last tensor
        every = values.shape[1] // _VALUES | 1  # odd: all channels have their turn
        forwards[-1].setdefault(name, []).append(values[:, ::every].float())

    hooks = [method.register_forward_pre_hook(lambda *_: forwards.append({}))]
    for name, layer in method.named_modules():
        if is_groupable(layer):
            hooks.append(
                layer.register_forward_pre_hook(lambda _, inputs, name=name: record(name, inputs[0]))
            )
    try:
        yield forwards
    finally:
        for hook in hooks:
            hook.remove()


def misplaced(small: Rows, large: Rows, n: int) -> str | None:
    """A layer whose rows are not whole views (view-major) of the samples in order; None if there is none.

    small: of n samples in eval mode; large: of the same n followed by as many others. The rows of the first n
    must be found where they then belong, else the layer folds other things than samples into its rows, or has
    moved them.
    """
    for name, calls in small.items():
        if len(large.get(name, ())) != len(calls):
            return name
        for rows, more in zip(calls, large[name]):
            if len(rows) % n or len(more) != 2 * len(rows):
                return name
            expected, found = rows.unflatten(0, (-1, n)), more.unflatten(0, (-1, 2 * n))[:, :n]
            if torch.dist(found, expected) > _ROUNDING * expected.norm():
                return name
    return None
