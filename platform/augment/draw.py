"""Every random parameter of a view, drawn from counters: the same for a sample in any process, batch or attempt.

Number k of operation `op` is uniform(seed, id, epoch, view, op, k), see rng.py. Crops are drawn where pictures are
read, colours where views are made.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .presets import Augmentation
from .rng import Words, mix, uniform

CROP_TRIES = 10  # as torchvision's RandomResizedCrop

# The `op` word of the draws. Their values are part of a run's identity: never renumber, only append.
CROP, POSITION, FLIP, JITTER, FACTORS, ORDER, GRAY, BLUR, SIGMA, SOLARIZE = range(10)


class Counter(NamedTuple):
    """The words that name the draws of n samples in one view. `view` counts over all views of the batch."""

    seed: int
    ids: NDArray[np.int64]  # (n, 1)
    epochs: Words  # from 0; one, or (n, 1)
    view: int

    @classmethod
    def of(cls, seed: int, ids: NDArray[np.int64], epochs: int | NDArray[np.int64], view: int) -> "Counter":
        """ids: (n,); epochs: one of all samples, or (n,)."""
        return cls(seed, ids[:, None], epochs if isinstance(epochs, int) else epochs[:, None], view)

    def chance(self, op: int, probability: float) -> NDArray[np.bool_]:
        return uniform(*self, op, 0)[:, 0] < probability


class Crops(NamedTuple):
    """Where each of n samples is cut in one view."""

    box: NDArray[np.int64]  # (n, 4) top, left, height, width in source pixels
    flip: NDArray[np.bool_]  # (n,)


class Colours(NamedTuple):
    """What happens to the colours of each of n samples in one view. Arrays (n,), unless said otherwise."""

    jitter: NDArray[np.bool_]
    factors: NDArray[np.float32]  # (n, 4) brightness, contrast, saturation, hue
    order: NDArray[np.int64]  # (n, 4) permutation of the four: order[:, 0] comes first
    gray: NDArray[np.bool_]
    blur: NDArray[np.bool_]
    sigma: NDArray[np.float64]
    solarize: NDArray[np.bool_]


def crops(
    spec: Augmentation, counter: Counter, heights: NDArray[np.int64], widths: NDArray[np.int64]
) -> Crops:
    """Boxes by the rule of torchvision's RandomResizedCrop, and flips; heights, widths: (n,) of the sources."""
    return Crops(_boxes(spec, counter, heights, widths), counter.chance(FLIP, spec.flip))


def colours(spec: Augmentation, counter: Counter) -> Colours:
    """The parameters of torchvision's ColorJitter, RandomGrayscale, GaussianBlur and RandomSolarize."""
    strengths = np.array([spec.brightness, spec.contrast, spec.saturation, spec.hue])
    centre = np.array([1.0, 1.0, 1.0, 0.0])
    low, high = np.maximum(centre - strengths, [0, 0, 0, -0.5]), centre + strengths
    sigma_low, sigma_high = spec.blur_sigma
    return Colours(
        jitter=counter.chance(JITTER, spec.jitter),
        factors=(low + (high - low) * uniform(*counter, FACTORS, np.arange(4))).astype(np.float32),
        order=np.argsort(mix(*counter, ORDER, np.arange(4)), axis=1),
        gray=counter.chance(GRAY, spec.gray),
        blur=counter.chance(BLUR, spec.blur),
        sigma=sigma_low + (sigma_high - sigma_low) * uniform(*counter, SIGMA, 0)[:, 0],
        solarize=counter.chance(SOLARIZE, spec.solarize),
    )


def _boxes(
    spec: Augmentation, counter: Counter, heights: NDArray[np.int64], widths: NDArray[np.int64]
) -> NDArray[np.int64]:
    """(n, 4): ten tries, then the centre."""
    u = uniform(*counter, CROP, np.arange(2 * CROP_TRIES)).reshape(-1, CROP_TRIES, 2)
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
    where = uniform(*counter, POSITION, np.arange(2))
    top = np.where(found, np.floor(where[:, 0] * (heights - height + 1)), (heights - height) // 2)
    left = np.where(found, np.floor(where[:, 1] * (widths - width + 1)), (widths - width) // 2)
    return np.stack([top.astype(np.int64), left.astype(np.int64), height, width], axis=1)
