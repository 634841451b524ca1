"""Image operations batched over samples, each sample with parameters of its own.

Every op equals torchvision's op on a float tensor at the same parameters: colour to 2e-6, blur to 5e-6, an
enlarging crop to 5e-5 (1e-5 at 32 pixels). Images are float32 in [0, 1],
(n, 3, H, W), any strides; plain NCHW is the fast layout, since the ops work on colour planes. Parameters are
(n,) tensors on the same device, prepared on the host: nothing here asks the device for a value. Names ending in _
change the images in place and return them.

A sample's result is the same bit for bit in any batch. So the ops are made of elementwise operations that
round once (no fused multiply-add: vector bodies and scalar tails disagree about it, and which pixel falls
in the tail depends on the batch), and the one reduction is exact in float64.
"""

from typing import NamedTuple

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

_GRAY = (0.2989, 0.587, 0.114)  # ITU-R 601-2, the digits of torchvision


def column(values: Tensor) -> Tensor:
    """(n,) -> (n, 1, 1, 1) float32."""
    return values.to(torch.float32)[:, None, None, None]


def luma(x: Tensor) -> Tensor:
    """(n, 1, H, W) gray image of (n, 3, H, W): .2989 R + .587 G + .114 B."""
    gray = x[:, 0:1] * _GRAY[0]
    gray += x[:, 1:2] * _GRAY[1]
    gray += x[:, 2:3] * _GRAY[2]
    return gray


def _blend_(x: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    """clamp(factor x + (1 - factor) other), in place."""
    factor = column(factor)
    return x.mul_(factor).add_(other * (1 - factor)).clamp_(0, 1)


def brightness_(x: Tensor, factor: Tensor) -> Tensor:
    """Blend with black: clamp(factor x)."""
    return x.mul_(column(factor)).clamp_(0, 1)


def contrast_(x: Tensor, factor: Tensor) -> Tensor:
    """Blend with the mean of the sample's gray image."""
    # gray + 1 lies in [1, 2], where floats are multiples of 2**-23: their float64 sum is exact in any order
    total = luma(x).add_(1).flatten(1).sum(1, dtype=torch.float64)
    mean = total / x[0, 0].numel() - 1
    return _blend_(x, column(mean), factor)


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


class Turn(NamedTuple):
    """One of the four places of a jitter: the samples sorted by the operation that comes there."""

    sort: Tensor | None  # (n,) int64; None: they are sorted
    ends: list[int]  # operation k has the slice ends[k] ... ends[k + 1]
    factors: Tensor  # (n,) float32, as sorted


class Turns(NamedTuple):
    places: list[Turn]
    back: Tensor | None  # (n,) int64, to the order that the samples came in


def turns_of(factors: NDArray[np.float32], steps: NDArray[np.int64]) -> Turns:
    """How `jitter` goes about it, on the host: nothing is left to decide where the pixels are.

    Args:
        factors: (n, 4) of brightness, contrast, saturation and hue.
        steps: (n, 4) which of them comes first, second, ...; NOTHING (4) leaves the sample alone.
    """
    rows, places = np.arange(len(steps)), list[Turn]()
    if (steps == NOTHING).all():
        return Turns(places, None)
    for place in range(4):
        sort = np.argsort(steps[rows, place], kind="stable")
        rows = rows[sort]
        ops = steps[rows, place]
        chosen = factors[rows, np.minimum(ops, NOTHING - 1)]
        ends = np.searchsorted(ops, np.arange(NOTHING + 1)).tolist()
        places.append(Turn(_moves(sort), ends, torch.from_numpy(chosen)))
    return Turns(places, _moves(np.argsort(rows)))


def jitter(x: Tensor, turns: Turns) -> Tensor:
    """Brightness (0), contrast (1), saturation (2), hue (3), in an order of each sample's own.

    An operation runs on one contiguous slice at each place; x, (n, 3, H, W) float32 in [0, 1], may be overwritten.
    """
    for turn in turns.places:
        x = x if turn.sort is None else x.index_select(0, turn.sort)
        for op, begin, end in zip(_JITTER, turn.ends, turn.ends[1:]):
            if end > begin:
                op(x[begin:end], turn.factors[begin:end])
    return x if turns.back is None else x.index_select(0, turns.back)


def _moves(rows: NDArray[np.int64]) -> Tensor | None:
    """A permutation for `index_select`, or None if it moves nothing."""
    return None if (rows[1:] > rows[:-1]).all() else torch.from_numpy(rows)


_JITTER = (brightness_, contrast_, saturation_, hue_)
NOTHING = len(_JITTER)


def grayscale_(x: Tensor) -> Tensor:
    """Three equal channels, the gray image in each."""
    return x.copy_(luma(x).expand_as(x))


def solarize_(x: Tensor, threshold: float | Tensor) -> Tensor:
    """Invert what is at or above the threshold, in [0, 1]: one, or of each sample (n, 1, 1, 1)."""
    above = (x >= threshold).to(x.dtype)
    return x.mul_(1 - 2 * above).add_(above)  # both steps are exact: -x, then 1 - x


def blur_taps(sigma: NDArray[np.float64], kernel: int, size: int) -> NDArray[np.float32]:
    """Weights of a Gaussian blur of (size, size) images by `kernel` x `kernel` taps: (n, half + 1), the middle first.

    Taps below 1e-6 are left out, which halves the work for sigmas of 0.1 to 2.
    """
    half = min(kernel // 2, size - 1)
    taps = np.exp(-0.5 * (np.arange(half + 1) / sigma[:, None]) ** 2)
    # cumsum adds in order; sum would group the terms by the shape of the batch
    taps = (taps / (2 * taps.cumsum(1)[:, -1:] - taps[:, :1])).astype(np.float32)
    taps[taps < 1e-6] = 0
    return taps[:, : int((taps > 0).any(0).sum())]


def blur_(x: Tensor, taps: Tensor) -> Tensor:
    """Gaussian blur by the weights of `blur_taps`, separable, reflected at the border.

    On a CPU by OpenCV, which passes a plane once where torch passes it three times a tap (2e-7 apart).
    """
    if x.device.type != "cpu":
        return x.copy_(blurred(x, taps))
    for planes, weights in zip(x.numpy(), taps.numpy()):
        own = weights[weights > 0]  # a sample's kernel is its own, whatever else is in the batch
        kernel = np.concatenate([own[:0:-1], own])
        for plane in planes:
            cv2.sepFilter2D(plane, -1, kernel, kernel, dst=plane, borderType=cv2.BORDER_REFLECT_101)
    return x


def blurred(x: Tensor, taps: Tensor) -> Tensor:
    """The same as two depthwise convolutions, whose channels are the planes of all samples."""
    n, channels, height, width = x.shape
    half = taps.shape[1] - 1
    kernels = torch.cat([taps[:, 1:].flip(1), taps], 1)[:, None].expand(n, channels, -1).flatten(0, 1)
    planes = x.reshape(1, n * channels, height, width)
    for border, shape in (((half, half, 0, 0), (1, 1, -1)), ((0, 0, half, half), (1, -1, 1))):
        padded = F.pad(planes, border, mode="reflect")
        planes = F.conv2d(padded, kernels.unflatten(1, shape), groups=n * channels)
    return planes.view_as(x)


def interleave(x: Tensor, out: Tensor) -> None:
    """Copy (n, 3, H, W) planes into a channels_last tensor of the same type: out.copy_(x), on a CPU 2.5 times as fast."""
    if x.device.type != "cpu":
        out.copy_(x)
        return
    planes, pixels = x, out.permute(0, 2, 3, 1).flatten(1, 2)
    if x.dtype == torch.bfloat16:  # OpenCV need not know what it moves
        planes, pixels = x.view(torch.int16), pixels.view(torch.int16)
    cv2.merge([planes[:, c].flatten(1).numpy() for c in range(3)], pixels.numpy())


class Places(NamedTuple):
    """Where `enlarge` looks, as grid_sample counts: -1 ... 1 over the source; both (n, size) float32."""

    x: Tensor
    y: Tensor


def places_of(boxes: NDArray[np.int64], flip: NDArray[np.bool_], size: int, side: int) -> Places:
    """Bilinear with coordinates clamped to the crop box, as if the crop were an image of its own.

    Args:
        boxes: (n, 4) top, left, height, width in pixels; height and width <= size.
        flip: (n,) whether the result is mirrored left to right.
        size: of the result. side: of the (side, side) source.
    """
    centres = (np.arange(size) + 0.5) / size
    axes = []
    for start, extent in ((1, 3), (0, 2)):
        first, count = boxes[:, start, None], boxes[:, extent, None]
        pixel = np.clip(first + count * centres - 0.5, first, first + count - 1)
        if start == 1:
            pixel = np.where(flip[:, None], pixel[:, ::-1], pixel)
        axes.append(torch.from_numpy(((2 * pixel + 1) / side - 1).astype(np.float32)))
    return Places(*axes)


def enlarge(x: Tensor, places: Places) -> Tensor:
    """Crop, resize and flip (n, 3, side, side) float32 by `places`: (n, 3, size, size)."""
    n, size = places.x.shape
    grid = torch.empty((n, size, size, 2), device=x.device)
    grid[..., 0] = places.x[:, None, :]
    grid[..., 1] = places.y[:, :, None]
    return F.grid_sample(x, grid, padding_mode="border", align_corners=False)
