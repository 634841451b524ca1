"""What is done to the pixels of one view, in its order: prepared on the host, done on the device.

Turn, jitter, gray, blur, solarise, edges, noise, cutout, each on the samples that drew it. RandAugment comes after the blur,
and then gray after it, as in InfoMin's code.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from . import draw, filters, ops, warps
from .presets import Augmentation
from .rand_augment import Group, layers_of, rand_augment
from .rows import Rows, rows_of, where


class Steps(NamedTuple):
    """Of one view, prepared; None: nothing is done."""

    quarters: list[Rows | None]  # samples that turn by 90, 180 and 270 degrees
    turns: ops.Turns
    gray: Rows | None
    blur: Rows | None
    taps: Tensor | None
    layers: list[list[Group]]  # of RandAugment
    solarize: Rows | None
    threshold: float
    sobel: Rows | None
    noise: Rows | None
    grain: Tensor | None
    sigma: Tensor | None
    cutout: Rows | None
    boxes: Tensor | None


def prepare(spec: Augmentation, drawn: draw.Colours, size: int) -> Steps:
    """For (size, size) views of the samples that `drawn` is of."""
    used = np.array([spec.brightness, spec.contrast, spec.saturation, spec.hue]) > 0
    order = np.where(drawn.jitter[:, None] & used[drawn.order], drawn.order, ops.NOTHING)
    blur, noise, cutout = rows_of(drawn.blur), rows_of(drawn.noise), rows_of(drawn.cutout)
    taps = grain = sigma = boxes = None
    if blur is not None:
        taps = torch.from_numpy(ops.blur_taps(drawn.sigma[drawn.blur], spec.blur_kernel(size), size))
    if noise is not None:
        grain = torch.from_numpy(draw.grain(drawn.noise_key[drawn.noise], 3 * size**2))
        sigma = torch.from_numpy(drawn.noise_sigma[drawn.noise].astype(np.float32))
    if cutout is not None:
        side = max(1, round(spec.cutout_size * size))
        corner = np.floor(drawn.cutout_centre[drawn.cutout] * size).astype(np.int64) - side // 2
        boxes = torch.from_numpy(np.concatenate([corner, corner + side], axis=1).clip(0, size))
    return Steps(
        quarters=[rows_of(drawn.quarters == k) for k in (1, 2, 3)],
        turns=ops.turns_of(drawn.factors, order),
        gray=rows_of(drawn.gray),
        blur=blur,
        taps=taps,
        layers=layers_of(drawn.rand, drawn.rand_levels, drawn.rand_negative, size),
        solarize=rows_of(drawn.solarize),
        threshold=spec.solarize_threshold / 255,
        sobel=rows_of(drawn.sobel),
        noise=noise,
        grain=grain,
        sigma=sigma,
        cutout=cutout,
        boxes=boxes,
    )


def done(x: Tensor, steps: Steps, fill: Tensor) -> Tensor:
    """The view of (n, 3, S, S) float32 in [0, 1], which may be overwritten; fill: (1, 3, 1, 1), for what is not seen."""
    for k, rows in enumerate(steps.quarters):
        where(rows, x, lambda part, k=k: warps.quarter_turns_(part, k + 1))  # type: ignore[misc]
    x = ops.jitter(x, steps.turns)
    if not steps.layers:
        where(steps.gray, x, ops.grayscale_)
    if steps.taps is not None:
        taps = steps.taps
        where(steps.blur, x, lambda part: ops.blur_(part, taps))
    if steps.layers:
        rand_augment(x, steps.layers, fill)
        where(steps.gray, x, ops.grayscale_)
    where(steps.solarize, x, lambda part: ops.solarize_(part, steps.threshold))
    where(steps.sobel, x, filters.sobel_)
    if steps.grain is not None and steps.sigma is not None:
        grain, sigma = steps.grain, steps.sigma
        where(steps.noise, x, lambda part: filters.noise_(part, grain, sigma))
    if steps.boxes is not None:
        boxes = steps.boxes
        where(steps.cutout, x, lambda part: filters.cutout_(part, boxes, fill))
    return x
