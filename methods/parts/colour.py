"""Colour spaces whose channels are told apart: luminance and chrominance.

Images are (n, 3, H, W) RGB in [0, 1] (sRGB); values beyond are clamped. Results have the same shape, each channel scaled to
about [-1, 1] by the middle and half the width of its range, as Contrastive Multiview Coding's code does.
"""

import torch
from torch import Tensor

_XYZ = (
    (0.412453, 0.357580, 0.180423),
    (0.212671, 0.715160, 0.072169),
    (0.019334, 0.119193, 0.950227),
)  # of sRGB
_WHITE = (0.95047, 1.0, 1.08883)  # D65
_YDBDR = ((0.299, 0.587, 0.114), (-0.450, -0.883, 1.333), (-1.333, 1.116, 0.217))
_LAB_RANGE = ((0.0, 100.0), (-86.183, 98.233), (-107.857, 94.478))
_YDBDR_RANGE = ((0.0, 1.0), (-1.333, 1.333), (-1.333, 1.333))

Rows = tuple[tuple[float, ...], ...]


def rgb(images: Tensor) -> Tensor:
    return images.clamp(0, 1) * 2 - 1


def lab(images: Tensor) -> Tensor:
    """CIE L*a*b* for the white of D65."""
    return _scaled(cie_lab(images), _LAB_RANGE)


def ydbdr(images: Tensor) -> Tensor:
    """SECAM's luminance and colour differences."""
    return _scaled(_mixed(images.clamp(0, 1), _YDBDR), _YDBDR_RANGE)


def cie_lab(images: Tensor) -> Tensor:
    """L in [0, 100], a and b about [-100, 100]."""
    images = images.clamp(0, 1)
    linear = torch.where(images > 0.04045, ((images + 0.055) / 1.055) ** 2.4, images / 12.92)
    xyz = _mixed(linear, _XYZ) / _column(_WHITE, images)
    f = torch.where(xyz > 0.008856, xyz.clamp(min=1e-6) ** (1 / 3), 7.787 * xyz + 16 / 116)
    x, y, z = f.unbind(1)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], dim=1)


def _mixed(images: Tensor, rows: Rows) -> Tensor:
    r, g, b = images.unbind(1)
    return torch.stack([i * r + j * g + k * b for i, j, k in rows], dim=1)


def _scaled(x: Tensor, ranges: Rows) -> Tensor:
    middle = _column([(low + high) / 2 for low, high in ranges], x)
    return (x - middle) / _column([(high - low) / 2 for low, high in ranges], x)


def _column(values: tuple[float, ...] | list[float], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device).view(1, 3, 1, 1)
