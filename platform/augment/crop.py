"""What reader tasks make of pictures: crops at the size of their view, or the picture itself where it is small.

A picture larger than a view (in either side) is cropped, resized with antialiasing and flipped here, once for each
such view, from one decode. A picture that some view enlarges travels whole, and is cropped where views are made.
Which of the two depends on the picture's own size only, so a view is the same in any batch.
"""

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vergence.platform.data.ragged import Ragged

from . import draw
from .presets import ViewSpec

Pictures = NDArray[np.uint8] | Sequence[NDArray[np.uint8]]  # (n, H, W, 3), or n arrays (H_i, W_i, 3)
GEOMETRY = 5  # numbers that say where a view was cut


class Layout(NamedTuple):
    """How the pixels of one picture lie in its record; all planes, uint8: (3, side, side) each.

    whole: side of the square that holds the whole picture in its upper left corner, 0 if no view needs it; it
    stands first.  crops: where the crop of each view begins, or -1: that view is cut from the whole picture.
    """

    whole: int
    crops: tuple[int, ...]
    length: int


@lru_cache(maxsize=1 << 12)
def layout(side: int, sizes: tuple[int, ...]) -> Layout:
    """Of a picture whose larger side is `side`, for views of these sizes.

    The square of a whole picture is a power of two: pictures of all sizes then come in a few shapes.
    """
    whole = 1 << (side - 1).bit_length() if side <= max(sizes, default=0) else 0
    crops, end = [], 3 * whole**2
    for size in sizes:
        crops.append(end if side > size else -1)
        end += 3 * size**2 if side > size else 0
    return Layout(whole, tuple(crops), end)


@lru_cache(maxsize=1 << 4)
def layout_ends(sizes: tuple[int, ...]) -> NDArray[np.int64]:
    """Larger sides at which the layout changes, ascending: it is one for all that lie behind one end, up to the next."""
    largest = max(sizes, default=0)
    return np.unique([0, *sizes, *(1 << k for k in range(largest.bit_length()))])


class Cut(NamedTuple):
    """n pictures on their way to V views."""

    pixels: Ragged  # uint8, by `layout`
    sizes: NDArray[np.int32]  # (n, 2) height and width of the sources
    geometry: NDArray[np.float32]  # (n, V, 5) crop top, left, height, width in source pixels, flip 0|1

    def part(self, rows: slice) -> "Cut":
        return Cut(self.pixels[rows], self.sizes[rows], self.geometry[rows])


def view_sizes(specs: Iterable[ViewSpec]) -> tuple[int, ...]:
    """The side of each view."""
    return tuple(spec.size for spec in specs for _ in range(spec.count))


def cut(
    pictures: Pictures,
    ids: NDArray[np.int64],
    epochs: int | NDArray[np.int64],
    specs: Sequence[ViewSpec],
    seed: int,
) -> Cut:
    """Draw and cut all views of n pictures.

    Args:
        pictures: they may be read-only.
        ids: (n,) sample ids.
        epochs: from 0; of all samples, or (n,).
        specs: the recipe's views.
        seed: the run's.
    """
    sizes = np.array([picture.shape[:2] for picture in pictures], np.int64).reshape(-1, 2)
    drawn = [
        draw.crops(each, draw.Counter.of(seed, ids, epochs, view), sizes[:, 0], sizes[:, 1])
        for view, each in enumerate(each for spec in specs for each in spec.augmentations())
    ]
    sides = view_sizes(specs)
    layouts = [layout(side, sides) for side in sizes.max(axis=1).tolist()]
    offsets = np.cumsum([0, *(each.length for each in layouts)], dtype=np.int64)
    values = np.zeros(offsets[-1], np.uint8)
    _put_whole(pictures, layouts, values, offsets)
    for view, (boxes, flips) in enumerate(drawn):
        for row, each in enumerate(layouts):
            if each.crops[view] >= 0:
                start = offsets[row] + each.crops[view]
                plane = values[start : start + 3 * sides[view] ** 2].reshape(3, sides[view], sides[view])
                plane[:] = resize(pictures[row], boxes[row], bool(flips[row]), sides[view])
    geometry = [np.column_stack([boxes, flips]).astype(np.float32) for boxes, flips in drawn]
    return Cut(Ragged(values, offsets), sizes.astype(np.int32), np.stack(geometry, axis=1))


def _put_whole(
    pictures: Pictures,
    layouts: Sequence[Layout],
    values: NDArray[np.uint8],
    offsets: NDArray[np.int64],
) -> None:
    first, n = layouts[0].whole if layouts else 0, len(pictures)
    if first and len(set(layouts)) == 1 and {picture.shape for picture in pictures} == {(first, first, 3)}:
        squares = values.reshape(n, -1)[:, : 3 * first**2].reshape(n, 3, first, first)
        squares[:] = np.stack(list(pictures)).transpose(0, 3, 1, 2)
        return
    for picture, each, start in zip(pictures, layouts, offsets):
        if each.whole:
            height, width, _ = picture.shape
            square = values[start : start + 3 * each.whole**2].reshape(3, each.whole, each.whole)
            square[:, :height, :width] = picture.transpose(2, 0, 1)


def resize(picture: NDArray[np.uint8], box: NDArray[np.int64], flip: bool, size: int) -> NDArray[np.uint8]:
    """Crop, resize with antialiasing (Pillow's bilinear, to one level) and flip one picture: (3, size, size).

    Args:
        picture: (H, W, 3) uint8; it is not written to.
        box: top, left, height, width in pixels.
        flip: whether the result is mirrored left to right.
    """
    import torch  # most readers have small pictures and need none of it
    from torch.nn.functional import interpolate

    top, left, height, width = box
    crop = np.require(picture[top : top + height, left : left + width], requirements="W")  # torch insists
    pixels = torch.from_numpy(crop).permute(2, 0, 1)[None]
    resized: NDArray[np.uint8] = interpolate(pixels, size=(size, size), mode="bilinear", antialias=True)[
        0
    ].numpy()
    return resized[:, :, ::-1] if flip else resized
