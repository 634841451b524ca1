"""Operations that move pixels within a view: quarter turns and affine maps, as torchvision's on float tensors.

A map is told by (n, 6) numbers a, b, c, d, e, f: the pixel at (x, y) from the middle shows what was at
(a x + b y + c, d x + e y + f). Those of RandAugment are Pillow's, whose shears leave the upper left corner where it is.
"""

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

Numbers = NDArray[np.float64]


def quarter_turns_(x: Tensor, turns: int) -> Tensor:
    """Turn (n, 3, S, S) counter-clockwise by 90 degrees times `turns`."""
    return x.copy_(torch.rot90(x, turns, (2, 3)))


def rotation(degrees: Numbers, size: int) -> Numbers:
    """Counter-clockwise; degrees: (n,)."""
    angle = np.radians(degrees)
    return _matrices(a=np.cos(angle), b=-np.sin(angle), d=np.sin(angle), e=np.cos(angle))


def shear_x(factor: Numbers, size: int) -> Numbers:
    """A row moves to the left by factor times its distance from the upper edge."""
    return _matrices(b=factor, c=factor * size / 2, like=factor)


def shear_y(factor: Numbers, size: int) -> Numbers:
    """A column moves up by factor times its distance from the left edge."""
    return _matrices(d=factor, f=factor * size / 2, like=factor)


def translation_x(share: Numbers, size: int) -> Numbers:
    """To the left by a share of the side."""
    return _matrices(c=share * size, like=share)


def translation_y(share: Numbers, size: int) -> Numbers:
    """Up by a share of the side."""
    return _matrices(f=share * size, like=share)


def _matrices(like: Numbers | None = None, **entries: Numbers) -> Numbers:
    """(n, 6), of the identity where nothing is given."""
    first = next(iter(entries.values())) if like is None else like
    return np.stack(
        [entries.get(name, np.full_like(first, float(name in "ae"))) for name in "abcdef"], axis=1
    )


def affine_(x: Tensor, matrices: Tensor, fill: Tensor) -> Tensor:
    """Map (n, 3, S, S), bilinear; beyond the border is `fill`, (1, 3, 1, 1); matrices: (n, 6) float32."""
    n, _, _, side = x.shape
    place = torch.arange(side, dtype=x.dtype, device=x.device) - (side - 1) / 2
    a, b, c, d, e, f = matrices[..., None, None].unbind(1)
    u, v = place[None, None, :], place[None, :, None]
    grid = torch.empty((n, side, side, 2), device=x.device)
    grid[..., 0] = (a * u + b * v + c) / (side / 2)
    grid[..., 1] = (d * u + e * v + f) / (side / 2)
    seen = F.grid_sample(torch.cat([x, torch.ones_like(x[:, :1])], dim=1), grid, align_corners=False)
    pixels, inside = seen.split([3, 1], dim=1)
    return x.copy_(
        (pixels - fill) * inside + fill
    )  # as torchvision: a pixel across the border is mixed twice
