"""RandAugment: a few operations at random of a set of fifteen, all with about the same strength.

Cubuk et al. 2019, arXiv:1909.13719, in the variant of InfoMin's code (github.com/HobbitLong/PyContrast,
rand-n2-m10-mstd0.5): an operation that is drawn is done with probability 1/2, its level is Gaussian around the
magnitude and at most 10. Maps are bilinear here (there bilinear or bicubic at random) and filled with the mean colour; all
is in floats, where Pillow rounds to levels.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from . import filters, ops, tones, warps
from .draw import RAND_OPERATIONS
from .rows import Rows, rows_of, where

Levels = NDArray[np.float64]

_MAPS: dict[str, tuple[Callable[[Levels, int], Levels], float]] = {  # and the parameter at level 1
    "rotate": (warps.rotation, 30.0),
    "shear_x": (warps.shear_x, 0.3),
    "shear_y": (warps.shear_y, 0.3),
    "translate_x": (warps.translation_x, 0.45),
    "translate_y": (warps.translation_y, 0.45),
}


def _enhancement(level: Levels) -> Levels:
    return 0.1 + 1.8 * level


_ARGUMENTS: dict[str, Callable[[Levels], Levels]] = {
    "posterize": lambda level: np.floor(4 * level),  # bits that are kept
    "solarize": lambda level: np.floor(256 * level) / 255,
    "solarize_add": lambda level: np.floor(110 * level) / 255,
    "colour": _enhancement,
    "contrast": _enhancement,
    "brightness": _enhancement,
    "sharpness": _enhancement,
}

_PLAIN: dict[str, Callable[[Tensor], Tensor]] = {
    "autocontrast": tones.autocontrast_,
    "equalize": tones.equalize_,
    "invert": tones.invert_,
}

_BY_ARGUMENT: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "posterize": tones.posterize_,
    "solarize": lambda x, threshold: ops.solarize_(x, ops.column(threshold)),
    "solarize_add": tones.solarize_add_,
    "colour": ops.saturation_,
    "contrast": ops.contrast_,
    "brightness": ops.brightness_,
    "sharpness": filters.sharpness_,
}


class Group(NamedTuple):
    """Samples that drew one kind of operation."""

    kind: str  # of the operations; "map" for all that move pixels
    rows: Rows
    arguments: Tensor  # (k,) float32; of maps (k, 6); of what takes none (0,)


def layers_of(
    drawn: NDArray[np.int64], levels: Levels, negative: NDArray[np.bool_], size: int
) -> list[list[Group]]:
    """What is done one after another to (size, size) views, each sample being in one group of a layer or in none.

    Args:
        drawn: (n, layers) places in RAND_OPERATIONS, -1: none.
        levels: (n, layers) in [0, 1].
        negative: (n, layers) whether a map goes the other way.
    """
    signs = np.where(negative, -1.0, 1.0)
    return [_layer(*each, size) for each in zip(drawn.T, levels.T, signs.T)]


def _layer(drawn: NDArray[np.int64], levels: Levels, signs: Levels, size: int) -> list[Group]:
    groups, moved = list[Group](), np.zeros(len(drawn), bool)
    matrices = np.zeros((len(drawn), 6))
    for place, name in enumerate(RAND_OPERATIONS):
        mask = drawn == place
        rows = rows_of(mask)
        if rows is None:
            continue
        if name in _MAPS:
            of, most = _MAPS[name]
            matrices[mask], moved = of(most * levels[mask] * signs[mask], size), moved | mask
        else:
            arguments = _ARGUMENTS[name](levels[mask]) if name in _ARGUMENTS else levels[:0]
            groups.append(Group(name, rows, torch.from_numpy(arguments.astype(np.float32))))
    rows = rows_of(moved)
    if rows is not None:
        groups.append(Group("map", rows, torch.from_numpy(matrices[moved].astype(np.float32))))
    return groups


def rand_augment(x: Tensor, layers: list[list[Group]], fill: Tensor) -> None:
    """Change (n, 3, S, S) float32 in [0, 1] in place; fill: (1, 3, 1, 1), the colour from beyond the border."""
    for layer in layers:
        for group in layer:
            where(group.rows, x, lambda part, group=group: _done(part, group, fill))  # type: ignore[misc]


def _done(x: Tensor, group: Group, fill: Tensor) -> Tensor:
    if group.kind == "map":
        return warps.affine_(x, group.arguments, fill)
    if group.kind in _PLAIN:
        return _PLAIN[group.kind](x)
    return _BY_ARGUMENT[group.kind](x, group.arguments)
