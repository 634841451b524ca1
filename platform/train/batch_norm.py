"""The arithmetic of batch normalisation: statistics, normalised rows and gradient, accurate on every path.

Ioffe & Szegedy 2015, arXiv:1502.03167, section 3. torch's CPU kernels add all rows of a channels_last tensor
one by one into one fp32 number a channel: over 262,144 rows the variance is off by 7e-5, with bf16 input or a
mean of ten standard deviations by up to 1e-3. Here they see tiles of a few rows and many columns (several
rows of the tensor side by side), whose results are put together in float64.
Shape suffixes: R rows (samples x positions), C channels.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

COLUMNS, ROWS = 2048, 128  # of a tile, at most: it fits the caches
_HALF = (torch.bfloat16, torch.float16)


@torch.no_grad()
def statistics(parts: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each part, two (len(parts), C) float64 tensors.

    parts: tensors of one shape with channels in dim 1.
    """
    C, dtype = parts[0].shape[1], _wide_dtype(parts[0])
    tiles = [_tiles(part) for part in parts]
    unused = torch.zeros(tiles[0][0].shape[1], dtype=dtype, device=parts[0].device)  # running statistics
    moments = [
        # in half precision torch's kernel for contiguous tensors rounds too
        torch.batch_norm_update_stats(tile if tile.dim() == 2 else tile.to(dtype), unused, unused, 0.0)
        for tiles_of_part in tiles
        for tile in tiles_of_part
    ]
    means, variances = (torch.cat(x).view(len(parts), len(tiles[0]), -1, C).double() for x in zip(*moments))
    share = _shares([len(tile) for tile in tiles[0]], means) / means.shape[2]
    mean = (share * means).sum((1, 2), keepdim=True)
    var = (share * (variances + (means - mean).square())).sum((1, 2))
    return mean.view(-1, C), var


def _shares(lengths: list[int], like: Tensor) -> Tensor | float:
    """What part of all rows each tile has, as it broadcasts over (parts, tiles, columns, C)."""
    if lengths[0] == lengths[-1]:  # only the last one may be shorter
        return 1 / len(lengths)
    return like.new_tensor(lengths).view(-1, 1, 1) / sum(lengths)


def over_ranks(mean: Tensor, var: Tensor, peers: Any) -> tuple[Tensor, Tensor]:
    """Statistics over the rows of all ranks of `peers`, which have as many rows each. Collective."""
    ranks = dist.get_world_size(peers)
    common = _sum(mean, peers) / ranks
    # about the common mean: E[x^2] - mean^2 would cancel
    return common, _sum(var + (mean - common).square(), peers) / ranks


class Normalise(torch.autograd.Function):
    """y = (x - mean) / sqrt(var + eps) * weight + bias, where mean and var are those of x, or of x on all peers.

    The gradients of weight and bias are this rank's part, like those of any parameter; the gradient of x is
    that of the sum over ranks of the objective.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor,
        var: Tensor,
        passes: Tensor | None,
        eps: float,
        peers: Any,
    ) -> Tensor:
        """x: (n, C, ...); mean, var: (C,) float64; peers: the process group that shares them, or None.

        passes: 0-d bool, whether there is a gradient; None without a backward.
        """
        dtype = _wide_dtype(x)
        mean, inverse_std, var = mean.to(dtype), torch.rsqrt(var + eps).to(dtype), var.to(dtype)
        if passes is not None:
            ctx.save_for_backward(x, weight, mean, torch.where(passes, inverse_std, 0), passes)
        ctx.peers, ctx.has_bias = peers, bias is not None
        return F.batch_norm(x, mean, var, weight, bias, training=False, eps=eps)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        x, weight, mean, inverse_std, passes = ctx.saved_tensors
        dy = grads[0] if grads[0].stride() == x.stride() else torch.empty_like(x).copy_(grads[0])
        if ctx.peers is None and (x.is_cuda or x.dtype in _HALF):
            # one fused pass; the half of its rounding is far above that of its sums
            dx, dweight, dbias = _fused_backward(dy, x, weight, mean, inverse_std, True)
        else:
            dbias, dweight = _column_sums(dy, x, mean, inverse_std)
            rows, sums = x.numel() // x.shape[1], torch.stack([dbias, dweight])
            if ctx.peers is not None:
                rows, sums = rows * dist.get_world_size(ctx.peers), _sum(sums, ctx.peers)
            dx = _input_gradient(dy, x, weight, mean, inverse_std, sums / rows)
        return (
            dx,
            None if weight is None else dweight.to(weight.dtype),
            torch.where(passes, dbias, 0).to(mean.dtype) if ctx.has_bias else None,
            *[None] * 5,
        )


def _fused_backward(
    dy: Tensor, x: Tensor, weight: Tensor | None, mean: Tensor, inverse_std: Tensor, with_x: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """torch's kernel: gradients of x (None unless with_x), weight and bias for the given statistics."""
    if weight is None:
        weight = torch.ones_like(mean)
    eps, mask = 0.0, [with_x, True, True]  # eps is in inverse_std already
    return torch.ops.aten.native_batch_norm_backward(
        dy, x, weight, None, None, mean, inverse_std, True, eps, mask
    )


def _column_sums(dy: Tensor, x: Tensor, mean: Tensor, inverse_std: Tensor) -> tuple[Tensor, Tensor]:
    """Sums over rows of dy and of dy * (x - mean) * inverse_std: two (C,) float64 tensors."""
    xs, dys = _tiles(x), _tiles(dy)
    mean_k, inverse_std_k = (_per_column(v, xs[0]).flatten() for v in (mean, inverse_std))
    sums = [_fused_backward(dy_t, x_t, None, mean_k, inverse_std_k, False) for dy_t, x_t in zip(dys, xs)]
    _, dweights, dbiases = zip(*sums)
    C = x.shape[1]
    dbias, dweight = (torch.cat(some).view(-1, C).double().sum(0) for some in (dbiases, dweights))
    return dbias, dweight


def _input_gradient(
    dy: Tensor, x: Tensor, weight: Tensor | None, mean: Tensor, inverse_std: Tensor, means: Tensor
) -> Tensor:
    """scale * (dy - mean of dy - normed x * mean of (dy * normed x)), in x's dtype; means: (2, C)."""
    scale = inverse_std if weight is None else inverse_std * weight
    slope, offset = -scale * inverse_std * means[1], -scale * means[0]
    dx = torch.empty_like(x)
    xs = _tiles(x)
    mean_k, scale_k, slope_k, offset_k = (
        _per_column(v.to(mean.dtype), xs[0]) for v in (mean, scale, slope, offset)
    )
    for x_t, dy_t, dx_t in zip(xs, _tiles(dy), _tiles(dx)):
        dx_t.copy_(torch.addcmul(offset_k, x_t - mean_k, slope_k).addcmul_(dy_t, scale_k))
    return dx


def _tiles(x: Tensor) -> Sequence[Tensor]:
    """Views of x, tiles if its channels are innermost in memory; column j of a tile holds channel j % C."""
    C = x.shape[1]
    if x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last):
        x = x.permute(0, 2, 3, 1).view(-1, C)
    if x.dim() > 2 or x.is_cuda or not x.is_contiguous():
        return [x]
    abreast = math.gcd(len(x), max(1, COLUMNS // C))  # rows of x in one row of a tile
    # errors of the sums grow with the rows of a tile, and average out over the tiles
    return x.view(-1, abreast * C).split(min(ROWS, math.isqrt(len(x))))


def _per_column(v: Tensor, tile: Tensor) -> Tensor:
    """(C,) -> what broadcasts over a tile."""
    return v.view(-1, *(1,) * (tile.dim() - 2)) if tile.dim() > 2 else v.repeat(tile.shape[1] // len(v))


def _wide_dtype(x: Tensor) -> torch.dtype:
    """At least fp32: statistics in half precision would be noise."""
    return torch.promote_types(x.dtype, torch.float32)


def _sum(x: Tensor, peers: Any) -> Tensor:
    total = x.clone()
    dist.all_reduce(total, group=peers)
    return total
