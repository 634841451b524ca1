"""Collectives that autograd sees: backward sums over ranks, so that averaged gradients are exact.

Without an initialised process group each is the identity on one rank.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def rank() -> int:
    return dist.get_rank() if is_distributed() else 0


def world_size() -> int:
    return dist.get_world_size() if is_distributed() else 1


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.rows = len(x)
        out = x.new_empty(world_size() * len(x), *x.shape[1:])
        dist.all_gather_into_tensor(out, x.contiguous())
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        grad = grads[0].contiguous().clone()
        dist.all_reduce(grad)
        return grad[rank() * ctx.rows : (rank() + 1) * ctx.rows]


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        out = x.contiguous().clone()
        dist.all_reduce(out)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        grad = grads[0].contiguous().clone()
        dist.all_reduce(grad)
        return grad


def gather(x: Tensor) -> Tensor:
    """(n, ...) on each rank -> (n * world_size, ...) in rank order; n must be equal on all ranks."""
    return _Gather.apply(x) if is_distributed() else x


def sum(x: Tensor) -> Tensor:
    """Sum over ranks, same shape."""
    return _Sum.apply(x) if is_distributed() else x


def mean(x: Tensor) -> Tensor:
    """Mean over ranks, same shape."""
    return sum(x) / world_size()


@torch.no_grad()
def maximum(x: Tensor) -> Tensor:
    """Largest over ranks, element by element, without gradient."""
    out = x.detach().clone()
    if is_distributed():
        dist.all_reduce(out, dist.ReduceOp.MAX)
    return out
