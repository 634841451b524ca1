"""The arithmetic of batch normalisation: statistics, normalised rows and gradient, accurate on every path.

Ioffe & Szegedy 2015, arXiv:1502.03167, section 3. torch's CPU kernels add all rows of a channels_last tensor
one by one into one fp32 number a channel: over 262,144 rows the variance is off by 7e-5, with bf16 input or a
mean of ten standard deviations by up to 1e-3. Here they see tiles of a few rows and many columns (several
rows of the tensor side by side), whose results are put together in float64.
Shape suffixes: R rows (samples x positions), C channels.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

COLUMNS, ROWS = 1024, 128  # of a tile, at most: it fits the caches
_HALF = (torch.bfloat16, torch.float16)


class Groups(NamedTuple):
    """Which rows of a forward are normalised together: the same `size` consecutive samples of every view."""

    samples: int  # in the forward; a multiple of size
    size: int

    def parts(self, x: Tensor) -> Sequence[Sequence[Tensor]]:
        """Views of the rows of each group: one a view of the samples, or all in one if there is one group."""
        if self.samples == self.size:
            return [[x]]
        return list(zip(*(view.split(self.size) for view in x.split(self.samples))))


@torch.no_grad()
def statistics(groups: Sequence[Sequence[Tensor]]) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each group, two (len(groups), C) tensors, float64 or at least float32.

    groups: the parts of each, all of one shape, with channels in dim 1.
    """
    parts = [part for group in groups for part in group]
    C, dtype = parts[0].shape[1], _wide_dtype(parts[0])
    tiles = [_tiles(part) for part in parts]
    unused = torch.zeros(tiles[0][0].shape[1], dtype=dtype, device=parts[0].device)  # running statistics
    moments = [
        # in half precision torch's kernel for contiguous tensors rounds too
        torch.batch_norm_update_stats(tile if tile.dim() == 2 else tile.to(dtype), unused, unused, 0.0)
        for tiles_of_part in tiles
        for tile in tiles_of_part
    ]
    if len(moments) == len(groups) and len(moments[0][0]) == C:  # a tile each: nothing to put together
        mean, var = (torch.stack(x) if len(x) > 1 else x[0][None] for x in zip(*moments))
        return mean, var
    lengths = [len(tile) for tile in tiles[0]] * len(groups[0])
    means, variances = (torch.cat(x).view(len(groups), len(lengths), -1, C).double() for x in zip(*moments))
    share: Any = 1 / (len(lengths) * means.shape[2])
    if len(set(lengths)) > 1:  # tiles of a CPU
        share = means.new_tensor(lengths).view(-1, 1, 1) / (sum(lengths) * means.shape[2])
    mean = (share * means).sum((1, 2), keepdim=True)
    var = (share * (variances + (means - mean).square())).sum((1, 2))
    return mean.view(-1, C), var


def over_ranks(mean: Tensor, var: Tensor, peers: dist.ProcessGroup) -> tuple[Tensor, Tensor]:
    """Statistics over the rows of all ranks of `peers`, which have as many rows each. Collective."""
    ranks, mean, var = dist.get_world_size(peers), mean.double(), var.double()
    common = _sum(mean, peers) / ranks
    # about the common mean: E[x^2] - mean^2 would cancel
    return common, _sum(var + (mean - common).square(), peers) / ranks


class Normalise(torch.autograd.Function):
    """y = (x - mean) / sqrt(var + eps) * weight + bias, where mean and var are those of x's group, here or on all peers.

    The gradients of weight and bias are this rank's part, like those of any parameter; the gradient of x is
    that of the sum over ranks of the objective.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        means: Tensor,
        variances: Tensor,
        passes: Callable[[], Tensor] | None,
        groups: Groups,
        eps: float,
        peers: dist.ProcessGroup | None,
    ) -> Tensor:
        """x: (n, C, ...); means, variances: (G, C) of wide type; peers: the process group that shares them, or None.

        passes: tells in the backward whether there is a gradient, (G,) bool; None without a backward.
        """
        dtype = _wide_dtype(x)
        inverse_std = torch.rsqrt(variances + eps).to(dtype)
        means, variances = means.to(dtype), variances.to(dtype)
        if passes is not None:
            ctx.save_for_backward(x, weight, means, inverse_std)
        ctx.passes, ctx.groups, ctx.peers, ctx.has_bias = passes, groups, peers, bias is not None
        y = torch.empty_like(x)
        saved = means.new_empty(0), means.new_empty(0)  # two: on a GPU the kernel works in them
        for xs, ys, mean, var in zip(groups.parts(x), groups.parts(y), means, variances):
            for x_p, y_p in zip(xs, ys):
                torch.ops.aten.native_batch_norm.out(
                    x_p,
                    weight,
                    bias,
                    mean,
                    var,
                    False,
                    0.0,
                    eps,
                    out=y_p,
                    save_mean=saved[0],
                    save_invstd=saved[1],
                )
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        x, weight, means, inverse_std = ctx.saved_tensors
        passes = ctx.passes()[:, None]
        inverse_std = inverse_std * passes
        dy = grads[0] if grads[0].stride() == x.stride() else torch.empty_like(x).copy_(grads[0])
        if ctx.peers is None and (x.is_cuda or x.dtype in _HALF):
            # one fused pass; the half of its rounding is far above that of its sums
            dx, sums = _fused(ctx.groups, dy, x, weight, means, inverse_std)
        else:
            sums = _sums(ctx.groups, dy, x, means, inverse_std)
            rows, total = x.numel() // (x.shape[1] * len(means)), sums
            if ctx.peers is not None:
                rows, total = rows * dist.get_world_size(ctx.peers), _sum(sums, ctx.peers)
            dx = _input_gradient(ctx.groups, dy, x, weight, means, inverse_std, total / rows)
        dbias, dweight = torch.where(passes, sums, 0).sum(1).to(means.dtype)
        return dx, None if weight is None else dweight, dbias if ctx.has_bias else None, *[None] * 6


def _fused(
    groups: Groups, dy: Tensor, x: Tensor, weight: Tensor | None, means: Tensor, inverse_std: Tensor
) -> tuple[Tensor, Tensor]:
    """The gradient of x, and the sums over rows of dy and of dy * normed x: (2, G, C)."""
    xs, dys = groups.parts(x), groups.parts(dy)
    if len(xs) == 1:
        dx, dweight, dbias = _fused_backward(dy, x, weight, means[0], inverse_std[0], True)
        return dx, torch.stack([dbias, dweight])[:, None]
    dx, sums = torch.empty_like(x), []
    for x_g, dy_g, dx_g, mean, inverse in zip(xs, dys, groups.parts(dx), means, inverse_std):
        whole_x, whole_dy = (parts[0] if len(parts) == 1 else torch.cat(list(parts)) for parts in (x_g, dy_g))
        whole_dx, dweight, dbias = _fused_backward(whole_dy, whole_x, weight, mean, inverse, True)
        for dx_p, part in zip(dx_g, whole_dx.split(groups.size)):
            dx_p.copy_(part)
        sums.append(torch.stack([dbias, dweight]))
    return dx, torch.stack(sums, 1)


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


def _sums(groups: Groups, dy: Tensor, x: Tensor, means: Tensor, inverse_std: Tensor) -> Tensor:
    """Sums over the rows of each group of dy and of dy * (x - mean) * inverse_std: (2, G, C) float64."""
    C, found = x.shape[1], []
    xs, dys = ([_tiles_of(parts) for parts in groups.parts(v)] for v in (x, dy))
    means_k, inverse_std_k = (_per_column(v, xs[0][0]).flatten(1) for v in (means, inverse_std))
    for x_g, dy_g, mean_k, inverse_k in zip(xs, dys, means_k, inverse_std_k):
        for x_t, dy_t in zip(x_g, dy_g):
            _, dweight, dbias = _fused_backward(dy_t, x_t, None, mean_k, inverse_k, False)
            found += [dbias, dweight]
    return torch.cat(found).view(len(means), len(xs[0]), 2, -1, C).double().sum((1, 3)).transpose(0, 1)


def _input_gradient(
    groups: Groups,
    dy: Tensor,
    x: Tensor,
    weight: Tensor | None,
    means: Tensor,
    inverse_std: Tensor,
    mean_sums: Tensor,
) -> Tensor:
    """scale * (dy - mean of dy - normed x * mean of (dy * normed x)), in x's dtype; mean_sums: (2, G, C)."""
    scale = inverse_std if weight is None else inverse_std * weight
    slope = -scale * inverse_std * mean_sums[1]
    offset = -scale * mean_sums[0] - slope * means
    dx = torch.empty_like(x)
    xs, dys, dxs = ([_tiles_of(parts) for parts in groups.parts(v)] for v in (x, dy, dx))
    scale_k, slope_k, offset_k = (_per_column(v.to(means.dtype), xs[0][0]) for v in (scale, slope, offset))
    for g, tiles in enumerate(zip(xs, dys, dxs)):
        for x_t, dy_t, dx_t in zip(*tiles):
            if x.dtype in _HALF:
                dx_t.copy_(torch.addcmul(offset_k[g], x_t, slope_k[g]).addcmul_(dy_t, scale_k[g]))
            else:  # in place, while the tile is in the cache
                torch.addcmul(offset_k[g], x_t, slope_k[g], out=dx_t).addcmul_(dy_t, scale_k[g])
    return dx


def _tiles_of(parts: Sequence[Tensor]) -> list[Tensor]:
    return [tile for part in parts for tile in _tiles(part)]


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
    """(G, C) -> (G, ...), each what broadcasts over a tile."""
    if tile.dim() > 2:
        return v.view(*v.shape, *(1,) * (tile.dim() - 2))
    return v.repeat(1, tile.shape[1] // v.shape[1])


def _wide_dtype(x: Tensor) -> torch.dtype:
    """At least fp32: statistics in half precision would be noise."""
    return torch.promote_types(x.dtype, torch.float32)


def _sum(x: Tensor, peers: dist.ProcessGroup) -> Tensor:
    total = x.clone()
    dist.all_reduce(total, group=peers)
    return total
