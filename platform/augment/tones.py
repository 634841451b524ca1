"""Operations that make of each level of a picture another one: of RandAugment, as torchvision's on float tensors.

Like those of ops.py: x is (n, 3, H, W) float32 in [0, 1] and changed in place, parameters are (n,) float32.
"""

import torch
from torch import Tensor

from .ops import column

LEVELS = 256
_TO_LEVEL = LEVELS - 1e-3  # as torchvision takes floats to uint8


def autocontrast_(x: Tensor) -> Tensor:
    """Stretch each colour to [0, 1]; a colour of one level stays."""
    low, high = x.amin((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
    flat = (high == low).to(x.dtype)
    return x.sub_(low * (1 - flat)).div_(high - low + flat).clamp_(0, 1)


def equalize_(x: Tensor) -> Tensor:
    """Spread the 256 levels of each colour so that all are about as frequent, as Pillow does."""
    levels = (x * _TO_LEVEL).to(torch.int64).flatten(2)  # (n, 3, H W)
    counts = torch.zeros(*levels.shape[:2], LEVELS, dtype=torch.int64, device=x.device)
    counts.scatter_add_(2, levels, torch.ones_like(levels))
    below = counts.cumsum(2)
    last = counts.gather(2, below.argmax(2, keepdim=True))  # pixels of the highest level that there is
    step = (levels.shape[2] - last) // (LEVELS - 1)
    spread = ((below - counts + step // 2) // step.clamp(min=1)).clamp_(0, LEVELS - 1)
    made = torch.where(step > 0, spread.gather(2, levels), levels)
    return x.copy_(made.view_as(x)).div_(LEVELS - 1)


def invert_(x: Tensor) -> Tensor:
    return x.neg_().add_(1)


def posterize_(x: Tensor, bits: Tensor) -> Tensor:
    """Keep 2**bits levels, bits in 0 ... 8."""
    levels = column(bits.exp2())
    x.mul_(levels).floor_().clamp_(min=0)
    return torch.minimum(x, levels - 1, out=x).div_(levels)


def solarize_add_(x: Tensor, amount: Tensor) -> Tensor:
    """Lighten what is below level 128."""
    dark = (x < (LEVELS // 2) / (LEVELS - 1)).to(x.dtype)
    return x.add_(dark * column(amount)).clamp_(max=1)
