"""Every random parameter of a view, drawn from counters: the same for a sample in any process, batch or attempt.

Number k of operation `op` is uniform(seed, id, epoch, view, op, k), see rng.py. Crops are drawn where pictures are
read, colours where views are made.
"""

from functools import lru_cache
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .presets import Augmentation
from .rng import Words, mix, uniform

CROP_TRIES = 10  # as torchvision's RandomResizedCrop

# The `op` word of the draws. Their values are part of a run's identity: never renumber, only append.
CROP, POSITION, FLIP, JITTER, FACTORS, ORDER, GRAY, BLUR, SIGMA, SOLARIZE = range(10)
TURN, SOBEL, NOISE, NOISE_SIGMA, GRAIN, CUTOUT, CENTRE, RAND = range(10, 18)

# Of RandAugment. Their order is part of a run's identity, too.
RAND_OPERATIONS = (
    "autocontrast",
    "equalize",
    "invert",
    "rotate",
    "posterize",
    "solarize",
    "solarize_add",
    "colour",
    "contrast",
    "brightness",
    "sharpness",
    "shear_x",
    "shear_y",
    "translate_x",
    "translate_y",
)
RAND_SHARE, RAND_TOP = 0.5, 10.0  # how often an operation is done that is drawn; the highest level
_RAND_DRAWS = 4  # a layer: which, whether, level, sign


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
        if not probability:
            return np.zeros(len(self.ids), bool)
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
    quarters: NDArray[np.int64]  # turns by 90 degrees, 0 to 3
    sobel: NDArray[np.bool_]
    noise: NDArray[np.bool_]
    noise_sigma: NDArray[np.float64]
    noise_key: NDArray[np.uint64]  # of `grain`
    cutout: NDArray[np.bool_]
    cutout_centre: NDArray[np.float64]  # (n, 2) from above and from the left, in [0, 1)
    rand: NDArray[np.int64]  # (n, layers) places in RAND_OPERATIONS, -1: none
    rand_levels: NDArray[np.float64]  # (n, layers) in [0, 1]
    rand_negative: NDArray[np.bool_]  # (n, layers)


def crops(
    spec: Augmentation, counter: Counter, heights: NDArray[np.int64], widths: NDArray[np.int64]
) -> Crops:
    """Boxes by the rule of torchvision's RandomResizedCrop, and flips; heights, widths: (n,) of the sources."""
    return Crops(_boxes(spec, counter, heights, widths), counter.chance(FLIP, spec.flip))


def colours(spec: Augmentation, counter: Counter) -> Colours:
    """The parameters of all that is done to a view once it is cut."""
    strengths = np.array([spec.brightness, spec.contrast, spec.saturation, spec.hue])
    centre = np.array([1.0, 1.0, 1.0, 0.0])
    low, high = np.maximum(centre - strengths, [0, 0, 0, -0.5]), centre + strengths
    sigma_low, sigma_high = spec.blur_sigma
    noise_low, noise_high = spec.noise_sigma
    turned = counter.chance(TURN, spec.rotate)
    rand, levels, negative = _rand_augment(spec, counter)
    return Colours(
        jitter=counter.chance(JITTER, spec.jitter),
        factors=(low + (high - low) * uniform(*counter, FACTORS, np.arange(4))).astype(np.float32),
        order=np.argsort(mix(*counter, ORDER, np.arange(4)), axis=1),
        gray=counter.chance(GRAY, spec.gray),
        blur=counter.chance(BLUR, spec.blur),
        sigma=sigma_low + (sigma_high - sigma_low) * uniform(*counter, SIGMA, 0)[:, 0],
        solarize=counter.chance(SOLARIZE, spec.solarize),
        quarters=np.where(turned, 1 + np.floor(3 * uniform(*counter, TURN, 1)[:, 0]), 0).astype(np.int64),
        sobel=counter.chance(SOBEL, spec.sobel),
        noise=counter.chance(NOISE, spec.noise),
        noise_sigma=noise_low + (noise_high - noise_low) * uniform(*counter, NOISE_SIGMA, 0)[:, 0],
        noise_key=mix(*counter, GRAIN)[:, 0],
        cutout=counter.chance(CUTOUT, spec.cutout),
        cutout_centre=uniform(*counter, CENTRE, np.arange(2)),
        rand=rand,
        rand_levels=levels,
        rand_negative=negative,
    )


def _rand_augment(
    spec: Augmentation, counter: Counter
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.bool_]]:
    """Operations, levels and signs, each (n, layers)."""
    layers = np.arange(spec.rand_augment)
    which, whether, _, sign = (uniform(*counter, RAND, _RAND_DRAWS * layers + k) for k in range(_RAND_DRAWS))
    normal = quantiles()[mix(*counter, RAND, _RAND_DRAWS * layers + 2) >> np.uint64(48)]
    levels = (spec.rand_augment_magnitude + spec.rand_augment_std * normal).clip(0, RAND_TOP) / RAND_TOP
    chosen = np.floor(len(RAND_OPERATIONS) * which).astype(np.int64)
    return np.where(whether < RAND_SHARE, chosen, -1), levels, sign < 0.5


@lru_cache(maxsize=1)
def quantiles() -> NDArray[np.float64]:
    """(2**16,) ascending: the standard Gaussian's quantiles at (k + 1/2) / 2**16, -4.3 to 4.3.

    A draw of one of them is a number that any vector unit takes from the table alike; a logarithm or cosine is not.
    """
    half = 2**15
    inverse = NormalDist().inv_cdf
    upper = np.array([inverse(0.5 + (k + 0.5) / (2 * half)) for k in range(half)])
    return np.concatenate([-upper[::-1], upper])


def grain(keys: NDArray[np.uint64], count: int) -> NDArray[np.int16]:
    """(n, count) places in `quantiles`, less 2**15: four from each number of mix(key, 0 ...), the lowest bits first."""
    words = mix(keys[:, None], np.arange(-(-count // 4)))
    return np.ascontiguousarray(words.astype("<u8").view("<i2")[:, :count])


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
