"""Image operations batched over samples, each sample with parameters of its own.

Every op equals torchvision's op on a float tensor at the same parameters: colour to 2e-6, blur to 5e-6, an
enlarging crop to 5e-5 (1e-5 at 32 pixels). A shrinking crop works on uint8 and is Pillow's bilinear filter
to one level of 255. Images are float32 in [0, 1],
(n, 3, H, W), any strides; plain NCHW is the fast layout, since the ops work on colour planes. Parameters are
(n,) tensors on the same device. Names ending in _ change the images in place and return them.

A sample's result is the same bit for bit in any batch. So the ops are made of elementwise operations that
round once (no fused multiply-add: vector bodies and scalar tails disagree about it, and which pixel falls
in the tail depends on the batch), and the one reduction is exact in float64.
"""

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

_GRAY = (0.2989, 0.587, 0.114)  # ITU-R 601-2, the digits of torchvision


def _column(values: Tensor) -> Tensor:
    return values.to(torch.float32)[:, None, None, None]


def luma(x: Tensor) -> Tensor:
    """(n, 1, H, W) gray image of (n, 3, H, W): .2989 R + .587 G + .114 B."""
    gray = x[:, 0:1] * _GRAY[0]
    gray += x[:, 1:2] * _GRAY[1]
    gray += x[:, 2:3] * _GRAY[2]
    return gray


def _blend_(x: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    """clamp(factor x + (1 - factor) other), in place."""
    factor = _column(factor)
    return x.mul_(factor).add_(other * (1 - factor)).clamp_(0, 1)


def brightness_(x: Tensor, factor: Tensor) -> Tensor:
    """Blend with black: clamp(factor x)."""
    return x.mul_(_column(factor)).clamp_(0, 1)


def contrast_(x: Tensor, factor: Tensor) -> Tensor:
    """Blend with the mean of the sample's gray image."""
    # gray + 1 lies in [1, 2], where floats are multiples of 2**-23: their float64 sum is exact in any order
    total = luma(x).add_(1).flatten(1).sum(1, dtype=torch.float64)
    mean = total / x[0, 0].numel() - 1
    return _blend_(x, _column(mean), factor)


def saturation_(x: Tensor, factor: Tensor) -> Tensor:
    """Blend with the gray image."""
    return _blend_(x, luma(x), factor)


def hue_(x: Tensor, shift: Tensor) -> Tensor:
    """Turn the hue of HSV by `shift` turns, in [-0.5, 0.5].

    With M, m the largest and smallest channel, C = M - m and hue h in [0, 6), HSV to RGB is
        R = m + C clamp(|h - 3| - 1), G = m + C clamp(2 - |h - 2|), B = m + C clamp(2 - |h - 4|)
    (clamp to [0, 1]), so value and saturation are never formed.
    """
    r, g, b = x.unbind(1)
    largest = torch.maximum(r, g).maximum(b)
    smallest = torch.minimum(r, g).minimum(b)
    chroma = largest - smallest
    twice = chroma * 2
    # C h, by which channel is the largest; masks are floats since torch vectorises no `where`
    hue = (r - g).add_(twice).add_(twice)
    mask = torch.empty_like(r)
    hue.add_((b - r).add_(twice).sub_(hue).mul_(torch.eq(g, largest, out=mask)))
    hue.add_((g - b).sub_(hue).mul_(torch.eq(r, largest, out=mask)))
    hue.div_(chroma.clamp(min=1e-12)).mul_(1 / 6)
    hue.add_(shift.to(torch.float32)[:, None, None] + 1).frac_().mul_(6)
    # m + C (clamp(a, 1, 2) - 1) for red, M - C (clamp(a, 1, 2) - 1) for green and blue, a = |h - centre|
    for channel, centre, base, combine in (
        (r, 3, smallest, torch.add),
        (g, 2, largest, torch.sub),
        (b, 4, largest, torch.sub),
    ):
        torch.sub(hue, centre, out=mask).abs_().clamp_(1, 2).sub_(1).mul_(chroma)
        combine(base, mask, out=channel)
    return x.clamp_(0, 1)


def jitter(x: Tensor, factors: Tensor, steps: NDArray[np.int64]) -> Tensor:
    """Brightness (0), contrast (1), saturation (2), hue (3), in an order of each sample's own.

    At each of the four places the samples are sorted by the operation that comes there, so that an
    operation runs on one contiguous slice; x may be overwritten.

    Args:
        x: (n, 3, H, W) float32 in [0, 1].
        factors: (n, 4) of the four operations.
        steps: (n, 4) which of them comes first, second, ...; NOTHING (4) leaves the sample alone.
    """
    rows = np.arange(len(x))
    for place in range(4):
        sort = np.argsort(steps[rows, place], kind="stable")
        x, rows = _take(x, sort), rows[sort]
        ends = np.searchsorted(steps[rows, place], np.arange(5))
        sorted_factors = factors[torch.from_numpy(rows).to(x.device)]
        for op, operation in enumerate(_JITTER):
            start, end = ends[op : op + 2]
            if start < end:
                operation(x[start:end], sorted_factors[start:end, op])
    return _take(x, np.argsort(rows))


def _take(x: Tensor, rows: NDArray[np.int64]) -> Tensor:
    """x[rows] for a permutation, without a copy when it moves nothing."""
    if (rows[1:] > rows[:-1]).all():
        return x
    return x.index_select(0, torch.from_numpy(rows).to(x.device))


_JITTER = (brightness_, contrast_, saturation_, hue_)
NOTHING = len(_JITTER)


def grayscale_(x: Tensor) -> Tensor:
    """Three equal channels, the gray image in each."""
    return x.copy_(luma(x).expand_as(x))


def solarize_(x: Tensor, threshold: float) -> Tensor:
    """Invert what is at or above the threshold, in [0, 1]."""
    above = (x >= threshold).to(x.dtype)
    return x.mul_(1 - 2 * above).add_(above)  # both steps are exact: -x, then 1 - x


def blur_(x: Tensor, sigma: NDArray[np.float64], kernel: int) -> Tensor:
    """Gaussian blur with a kernel of `kernel` x `kernel` taps, reflected at the border.

    Separable; taps below 1e-6 are left out, which halves the work for sigmas of 0.1 to 2.
    """
    half = min(kernel // 2, min(x.shape[-2:]) - 1)
    taps = np.exp(-0.5 * (np.arange(half + 1) / sigma[:, None]) ** 2)
    # cumsum adds in order; sum would group the terms by the shape of the batch
    taps = (taps / (2 * taps.cumsum(1)[:, -1:] - taps[:, :1])).astype(np.float32)
    taps[taps < 1e-6] = 0
    half = int((taps > 0).any(0).sum()) - 1
    weights = torch.from_numpy(taps).to(x.device)
    for dim in (2, 3):
        size = x.shape[dim]
        padded = F.pad(x, (0, 0, half, half) if dim == 2 else (half, half, 0, 0), mode="reflect")
        x.copy_(padded.narrow(dim, half, size)).mul_(_column(weights[:, 0]))
        for k in range(1, half + 1):
            pair = padded.narrow(dim, half - k, size) + padded.narrow(dim, half + k, size)
            x.add_(pair.mul_(_column(weights[:, k])))
    return x


def enlarge(x: Tensor, boxes: NDArray[np.int64], flip: NDArray[np.bool_], size: int) -> Tensor:
    """Crop, resize to (size, size) and flip, for boxes that are no larger than that: (n, 3, size, size).

    Bilinear with coordinates clamped to the crop box, as if the crop were an image of its own.

    Args:
        x: (n, 3, H, W) float32.
        boxes: (n, 4) top, left, height, width in pixels; height and width <= size.
        flip: (n,) whether the result is mirrored left to right.
    """
    centres = (np.arange(size) + 0.5) / size
    grid = torch.empty((len(x), size, size, 2))
    for axis, (start, extent, length) in enumerate(((1, 3, x.shape[3]), (0, 2, x.shape[2]))):
        first, count = boxes[:, start, None], boxes[:, extent, None]
        pixel = np.clip(first + count * centres - 0.5, first, first + count - 1)
        if axis == 0:
            pixel = np.where(flip[:, None], pixel[:, ::-1], pixel)
        unit = torch.from_numpy(((2 * pixel + 1) / length - 1).astype(np.float32))
        grid[..., axis] = unit[:, None, :] if axis == 0 else unit[:, :, None]
    return F.grid_sample(x, grid.to(x.device), padding_mode="border", align_corners=False)


def resize(image: NDArray[np.uint8], box: NDArray[np.int64], flip: bool, size: int) -> Tensor:
    """Crop, resize with antialiasing (Pillow's bilinear) and flip one image: (1, 3, size, size) uint8.

    Args:
        image: (H, W, 3) uint8; it is not written to.
        box: top, left, height, width in pixels.
        flip: whether the result is mirrored left to right.
    """
    top, left, height, width = box
    crop = np.require(image[top : top + height, left : left + width], requirements="W")  # torch insists
    pixels = torch.from_numpy(crop).permute(2, 0, 1)[None]
    resized = F.interpolate(pixels, size=(size, size), mode="bilinear", antialias=True)
    return resized.flip(3) if flip else resized
