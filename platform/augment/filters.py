"""Operations that look at a pixel's neighbours, or at none: edges, sharpness, noise, squares that are cut out.

Like those of ops.py: x is (n, 3, H, W) float32 in [0, 1] and changed in place, parameters are (n,).
"""

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from . import draw
from .ops import column, luma


def sobel_(x: Tensor) -> Tensor:
    """Three equal channels: the gray picture's gradient by Sobel's filters, its length over the longest there can be."""
    gray = F.pad(luma(x), (1, 1, 1, 1), mode="replicate")
    down = gray[:, :, :-2] + gray[:, :, 1:-1] * 2 + gray[:, :, 2:]
    across = gray[..., :-2] + gray[..., 1:-1] * 2 + gray[..., 2:]
    dx = (down[..., 2:] - down[..., :-2]) / 4
    dy = (across[:, :, 2:] - across[:, :, :-2]) / 4
    return x.copy_(((dx * dx + dy * dy) / 2).sqrt().clamp(max=1).expand_as(x))


def sharpness_(x: Tensor, factor: Tensor) -> Tensor:
    """Blend with the mean of 3 x 3 pixels, in which the middle one counts five times; the border stays."""
    if min(x.shape[2:]) <= 2:
        return x
    inner = x[:, :, 1:-1, 1:-1]
    rows = x[:, :, :-2] + x[:, :, 1:-1] + x[:, :, 2:]
    smooth = (rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:] + inner * 4) / 13
    inner.add_((smooth - inner) * (1 - column(factor)))
    return x.clamp_(0, 1)


def noise_(x: Tensor, grain: Tensor, sigma: Tensor) -> Tensor:
    """Add Gaussian noise; grain: (n, 3 H W) int16, which quantile of the Gaussian each pixel gets."""
    quantiles = _quantiles(x.device)[grain.to(torch.int64) + len(draw.quantiles()) // 2]
    return x.add_(quantiles.view_as(x) * column(sigma)).clamp_(0, 1)


@lru_cache(maxsize=4)
def _quantiles(device: torch.device) -> Tensor:
    return torch.from_numpy(draw.quantiles()).to(device, torch.float32)


def cutout_(x: Tensor, boxes: Tensor, fill: Tensor) -> Tensor:
    """Fill a box, (n, 4) int64 top, left, bottom, right, by (1, 3, 1, 1)."""
    row = torch.arange(x.shape[2], device=x.device)[:, None]
    column_ = torch.arange(x.shape[3], device=x.device)
    top, left, bottom, right = boxes[..., None, None].unbind(1)
    inside = (row >= top) & (row < bottom) & (column_ >= left) & (column_ < right)
    return x.copy_(torch.where(inside[:, None], fill, x))
