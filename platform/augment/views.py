"""From images to augmented views: first every parameter of every sample is drawn, then pixels are touched."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from . import ops
from .presets import PRESETS, Augmentation, ViewSpec
from .rng import mix, uniform

__all__ = ["PRESETS", "Augmentation", "Images", "Params", "ViewSpec", "Views", "draw"]

Images = NDArray[np.uint8] | Sequence[NDArray[np.uint8]]  # (n, H, W, 3), or n arrays (H_i, W_i, 3)

CHUNK_BYTES = 3 << 19  # float32 pixels worked on at a time on a CPU: about a core's L2 cache
CROP_TRIES = 10  # as torchvision's RandomResizedCrop

# The `op` word of the draws. Their values are part of a run's identity: never renumber, only append.
CROP, POSITION, FLIP, JITTER, FACTORS, ORDER, GRAY, BLUR, SIGMA, SOLARIZE = range(10)


class Params(NamedTuple):
    """What happens to each of n samples in one view. Arrays (n,), unless said otherwise."""

    box: NDArray[np.int64]  # (n, 4) crop top, left, height, width in source pixels
    flip: NDArray[np.bool_]
    jitter: NDArray[np.bool_]
    factors: NDArray[np.float32]  # (n, 4) brightness, contrast, saturation, hue
    order: NDArray[np.int64]  # (n, 4) permutation of the four: order[:, 0] comes first
    gray: NDArray[np.bool_]
    blur: NDArray[np.bool_]
    sigma: NDArray[np.float64]
    solarize: NDArray[np.bool_]


def draw(
    spec: Augmentation,
    seed: int,
    ids: NDArray[np.int64],
    epoch: int,
    view: int,
    heights: NDArray[np.int64],
    widths: NDArray[np.int64],
) -> Params:
    """All random parameters of one view of n samples; each depends on nothing but its own arguments.

    Number k of operation `op` is uniform(seed, id, epoch, view, op, k), see rng.py.

    Args:
        spec: the distribution; it has torchvision's meaning (RandomResizedCrop, ColorJitter, ...).
        seed, epoch, view: words of the counter; `view` counts over all views of the batch.
        ids, heights, widths: (n,) sample ids and source sizes in pixels.
    """
    words = (seed, ids[:, None], epoch, view)

    def chance(op: int, probability: float) -> NDArray[np.bool_]:
        return uniform(*words, op, 0)[:, 0] < probability

    strengths = np.array([spec.brightness, spec.contrast, spec.saturation, spec.hue])
    centre = np.array([1.0, 1.0, 1.0, 0.0])
    low, high = np.maximum(centre - strengths, [0, 0, 0, -0.5]), centre + strengths
    sigma_low, sigma_high = spec.blur_sigma
    return Params(
        box=_crop_box(spec, words, heights, widths),
        flip=chance(FLIP, spec.flip),
        jitter=chance(JITTER, spec.jitter),
        factors=(low + (high - low) * uniform(*words, FACTORS, np.arange(4))).astype(np.float32),
        order=np.argsort(mix(*words, ORDER, np.arange(4)), axis=1),
        gray=chance(GRAY, spec.gray),
        blur=chance(BLUR, spec.blur),
        sigma=sigma_low + (sigma_high - sigma_low) * uniform(*words, SIGMA, 0)[:, 0],
        solarize=chance(SOLARIZE, spec.solarize),
    )


def _crop_box(
    spec: Augmentation,
    words: tuple[int, NDArray[np.int64], int, int],
    heights: NDArray[np.int64],
    widths: NDArray[np.int64],
) -> NDArray[np.int64]:
    """(n, 4) boxes by the rule of torchvision's RandomResizedCrop: ten tries, then the centre."""
    u = uniform(*words, CROP, np.arange(2 * CROP_TRIES)).reshape(-1, CROP_TRIES, 2)
    scale = spec.crop_scale[0] + (spec.crop_scale[1] - spec.crop_scale[0]) * u[..., 0]
    low, high = np.log(spec.crop_ratio)
    ratio = np.exp(low + (high - low) * u[..., 1])
    area = (heights * widths)[:, None] * scale
    width = np.rint(np.sqrt(area * ratio)).astype(np.int64)
    height = np.rint(np.sqrt(area / ratio)).astype(np.int64)
    fits = (width > 0) & (width <= widths[:, None]) & (height > 0) & (height <= heights[:, None])
    first = fits.argmax(1)
    rows = np.arange(len(first))
    width, height, found = width[rows, first], height[rows, first], fits.any(1)
    # the largest box in the centre whose ratio is allowed
    lowest, highest = spec.crop_ratio
    fallback_height = np.where(widths / heights < lowest, np.rint(widths / lowest), heights).astype(np.int64)
    fallback_width = np.where(widths / heights > highest, np.rint(heights * highest), widths).astype(np.int64)
    height = np.where(found, height, fallback_height)
    width = np.where(found, width, fallback_width)
    where = uniform(*words, POSITION, np.arange(2))
    top = np.where(found, np.floor(where[:, 0] * (heights - height + 1)), (heights - height) // 2)
    left = np.where(found, np.floor(where[:, 1] * (widths - width + 1)), (widths - width) // 2)
    return np.stack([top.astype(np.int64), left.astype(np.int64), height, width], axis=1)


class Views:
    """Augmented views of a batch, the same for a sample in any batch, on any worker, after any resume.

    Args:
        specs: the recipe's list; the views come in its order.
        seed: the run's seed.
        mean, std: of the normalisation, per channel, for pixels in [0, 1].
        dtype, device: of the views.
    """

    def __init__(
        self,
        specs: Sequence[ViewSpec],
        *,
        seed: int,
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        self.settings = [(each, spec.size) for spec in specs for each in spec.augmentations()]
        self.seed, self.dtype, self.device = seed, dtype, torch.device(device)
        self.mean = torch.tensor(mean, device=device).view(1, 3, 1, 1)
        self.std = torch.tensor(std, device=device).view(1, 3, 1, 1)

    @torch.no_grad()
    def __call__(
        self, images: Images, ids: NDArray[np.int64], epoch: int
    ) -> tuple[list[Tensor], list[Tensor]]:
        """The views of n images and where they were cut.

        Args:
            images: (n, H, W, 3) uint8, or a list of n arrays (H_i, W_i, 3); they may be read-only.
            ids: (n,) int64 sample ids.
            epoch: from 0.
        Returns:
            one (n, 3, size, size) channels_last tensor per view, and one (n, 5) float32 tensor per view:
            crop top, left, height, width in source pixels and flip 0|1.
        """
        n, largest = len(ids), max(size for _, size in self.settings)
        if len(images) != n:
            raise ValueError(f"got {len(images)} images and {n} ids")
        sizes = np.array([image.shape[:2] for image in images], dtype=np.int64).reshape(n, 2)
        # images that a view enlarges go through one kernel, when they have one size
        alike = n > 0 and (sizes == sizes[0]).all() and sizes[0].max() <= largest
        params = [
            draw(spec, self.seed, ids, epoch, view, sizes[:, 0], sizes[:, 1])
            for view, (spec, _) in enumerate(self.settings)
        ]
        views = [
            torch.empty(n, 3, s, s, dtype=self.dtype, device=self.device, memory_format=torch.channels_last)
            for _, s in self.settings
        ]
        chunk = max(1, CHUNK_BYTES // (12 * largest**2) if self.device.type == "cpu" else n)
        for start in range(0, n, chunk):
            rows = slice(start, start + chunk)
            part = images[rows]
            source = _planar(_stacked(part), self.device) if alike else None  # once for all views
            for view, (spec, size) in enumerate(self.settings):
                drawn = Params._make(array[rows] for array in params[view])
                x = _crop(part, source, drawn, size).to(self.device).to(torch.float32).div_(255)
                x = _colour(x, spec, drawn).sub_(self.mean).div_(self.std)
                views[view][rows].copy_(x.to(self.dtype))  # cast before the change of layout: twice as fast
        geometry = [np.column_stack([each.box, each.flip]).astype(np.float32) for each in params]
        return views, [torch.from_numpy(each).to(self.device) for each in geometry]


def _stacked(images: Images) -> NDArray[np.uint8]:
    """Images of one size as one array; they may come as a list or as an array of arrays."""
    whole = isinstance(images, np.ndarray) and images.dtype == np.uint8
    return np.asarray(images) if whole else np.stack(list(images))


def _planar(images: NDArray[np.uint8], device: torch.device | str = "cpu") -> Tensor:
    """(n, H, W, 3) uint8, read-only or not, to (n, 3, H, W) float32 levels 0 ... 255, NCHW."""
    pixels = torch.from_numpy(np.require(images, requirements="W")).to(device).permute(0, 3, 1, 2)
    return pixels.to(torch.float32, memory_format=torch.contiguous_format)


def _crop(images: Images, source: Tensor | None, drawn: Params, size: int) -> Tensor:
    """Crop, resize, flip: (n, 3, size, size), levels 0 ... 255, uint8 or float32.

    Which of the two ways an image takes depends on its own size only, never on the rest of the batch.
    """
    if source is not None and max(source.shape[2:]) <= size:
        return ops.enlarge(source, drawn.box, drawn.flip, size)
    return torch.cat(
        [
            ops.resize(image, drawn.box[i], bool(drawn.flip[i]), size)
            if max(image.shape[:2]) > size
            else ops.enlarge(_planar(image[None]), drawn.box[i : i + 1], drawn.flip[i : i + 1], size)
            for i, image in enumerate(images)
        ]
    )


def _colour(x: Tensor, spec: Augmentation, drawn: Params) -> Tensor:
    """Jitter, gray, blur, solarise, each on the samples that drew it; x is (n, 3, size, size) in [0, 1]."""
    used = np.array([spec.brightness, spec.contrast, spec.saturation, spec.hue]) > 0
    steps = np.where(drawn.jitter[:, None] & used[drawn.order], drawn.order, ops.NOTHING)
    x = ops.jitter(x, torch.from_numpy(drawn.factors).to(x.device), steps)
    _where(drawn.gray, x, lambda part, rows: ops.grayscale_(part))
    _where(
        drawn.blur, x, lambda part, rows: ops.blur_(part, drawn.sigma[rows], spec.blur_kernel(x.shape[-1]))
    )
    _where(drawn.solarize, x, lambda part, rows: ops.solarize_(part, spec.solarize_threshold / 255))
    return x


def _where(mask: NDArray[np.bool_], x: Tensor, op: Callable[[Tensor, NDArray[np.int64]], Tensor]) -> None:
    """x[rows] = op(x[rows]) for the rows of the mask, without a copy when that is all of them."""
    rows = np.flatnonzero(mask)
    if len(rows) == len(x):
        op(x, rows)
    elif len(rows):
        index = torch.from_numpy(rows).to(x.device)
        x.index_copy_(0, index, op(x.index_select(0, index), rows))
