"""From cut pictures to augmented views, on the device: what steps.py does to their pixels, then normalised.

First every parameter of every sample is drawn and prepared on the host, then all of it goes to the device at once,
then pixels are touched. So nothing here waits for the device.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from . import draw, ops, steps
from .crop import Cut, Layout, Pictures, cut, layout, layout_ends, view_sizes
from .parcel import Parcel
from .presets import ViewSpec

__all__ = ["ViewSpec", "Views"]

CHUNK_BYTES = 3 << 19  # float32 pixels worked on at a time on a CPU: about a core's L2 cache


class _Run(NamedTuple):
    """Consecutive samples of one layout."""

    layout: Layout
    rows: slice


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
        self.specs, self.sizes = tuple(specs), view_sizes(specs)
        self.settings = [each for spec in specs for each in spec.augmentations()]
        self.seed, self.dtype, self.device = seed, dtype, torch.device(device)
        self.mean = torch.tensor(mean, device=device).view(1, 3, 1, 1)
        self.std = torch.tensor(std, device=device).view(1, 3, 1, 1)

    def __call__(
        self, pictures: Pictures, ids: NDArray[np.int64], epoch: int
    ) -> tuple[list[Tensor], list[Tensor]]:
        """The views of n pictures that are at hand, and where they were cut.

        Args:
            pictures: they may be read-only.
            ids: (n,) int64 sample ids.
            epoch: from 0.
        Returns:
            one (n, 3, size, size) channels_last tensor per view, and one (n, 5) float32 tensor per view:
            crop top, left, height, width in source pixels and flip 0|1; what moves pixels later is not told.
        """
        if len(pictures) != len(ids):
            raise ValueError(f"got {len(pictures)} images and {len(ids)} ids")
        pieces = cut(pictures, ids, epoch, self.specs, self.seed)
        parcel = Parcel(self.device)
        views = self.prepare(pieces, ids, epoch, parcel)
        geometry = parcel.put([torch.from_numpy(each) for each in pieces.geometry.swapaxes(0, 1)])
        parcel.send()
        return views(), geometry()

    def prepare(
        self, pieces: Cut, ids: NDArray[np.int64], epoch: int, parcel: Parcel
    ) -> Callable[[], list[Tensor]]:
        """Put what the views of n samples need into a parcel; called after it is sent, the views themselves.

        pieces: of these samples, cut by the same specs and seed; ids, epoch as above.
        """
        n, largest = len(ids), max(self.sizes)
        colours = [
            draw.colours(spec, draw.Counter.of(self.seed, ids, epoch, view))
            for view, spec in enumerate(self.settings)
        ]
        size = max(1, CHUNK_BYTES // (12 * largest**2) if self.device.type == "cpu" else n)
        chunks = [slice(start, min(start + size, n)) for start in range(0, n, size)]
        prepared = [
            self._chunk(pieces.part(rows), [_part(drawn, rows) for drawn in colours], parcel)
            for rows in chunks
        ]

        @torch.no_grad()
        def finish() -> list[Tensor]:
            views = [
                torch.empty(
                    n, 3, s, s, dtype=self.dtype, device=self.device, memory_format=torch.channels_last
                )
                for s in self.sizes
            ]
            for rows, chunk in zip(chunks, prepared):
                for view, x in enumerate(chunk()):
                    x.sub_(self.mean).div_(self.std)
                    ops.interleave(x.to(self.dtype), views[view][rows])  # cast before: twice as fast
            return views

        return finish

    def _chunk(
        self, pieces: Cut, colours: Sequence[draw.Colours], parcel: Parcel
    ) -> Callable[[], "Sequence[Tensor]"]:
        """The views of a few samples, (n, 3, size, size) float32 in [0, 1]."""
        runs = _runs(pieces.sizes, self.sizes)
        pixels = parcel.put_pixels(np.asarray(pieces.pixels.flat, np.uint8))
        places = parcel.put(
            [[self._places(pieces, run, view) for run in runs] for view in range(len(self.sizes))]
        )
        planned = parcel.put(list(map(steps.prepare, self.settings, colours, self.sizes)))

        def finish() -> Sequence[Tensor]:
            records, flat, end = [], pixels(), 0
            for run in runs:
                start, end = end, end + run.layout.length * (run.rows.stop - run.rows.start)
                records.append(flat[start:end].view(-1, run.layout.length))
            wholes = [
                _planes(record, 0, run.layout.whole) if run.layout.whole else None
                for run, record in zip(runs, records)
            ]
            views = []
            for view, (plan, found) in enumerate(zip(planned(), places())):
                parts = [
                    _planes(record, run.layout.crops[view], self.sizes[view])
                    if place is None or whole is None
                    else ops.enlarge(whole, place)
                    for run, record, whole, place in zip(runs, records, wholes, found)
                ]
                x = parts[0] if len(parts) == 1 else torch.cat(parts)
                views.append(steps.done(x.div_(255), plan, self.mean))
            return views

        return finish

    def _places(self, pieces: Cut, run: _Run, view: int) -> ops.Places | None:
        """Where a view is cut from the whole pictures of a run; None: it was cut by the reader."""
        if run.layout.crops[view] >= 0:
            return None
        geometry = pieces.geometry[run.rows, view]
        boxes = geometry[:, :4].astype(np.int64)
        return ops.places_of(boxes, geometry[:, 4] > 0, self.sizes[view], run.layout.whole)


def _part(drawn: draw.Colours, rows: slice) -> draw.Colours:
    return draw.Colours._make(array[rows] for array in drawn)


def _runs(sizes: NDArray[np.int32], view_sizes: tuple[int, ...]) -> list[_Run]:
    sides = sizes.max(axis=1)
    changes = np.flatnonzero(np.diff(np.searchsorted(layout_ends(view_sizes), sides))) + 1
    ends = [0, *changes.tolist(), len(sides)]
    return [
        _Run(layout(int(sides[start]), view_sizes), slice(start, stop))
        for start, stop in itertools.pairwise(ends)
    ]


def _planes(records: Tensor, start: int, side: int) -> Tensor:
    """(n, 3, side, side) float32 levels 0 ... 255 out of n records."""
    pixels = records[:, start : start + 3 * side**2].unflatten(1, (3, side, side))
    return pixels.to(torch.float32, memory_format=torch.contiguous_format)
