"""Each rank's planned samples, in order, read and decoded by Ray Data (DESIGN C5).

A Dataset for a rank and a stretch of steps: `range` over its positions and one pure map
position -> plan -> bytes -> pixels. So order and assignment depend on nothing that Ray decides.
"""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vergence.platform.data.decode import BadSample
from vergence.platform.data.index import Index
from vergence.platform.data.plan import Plan
from vergence.platform.data.read import Reader
from vergence.platform.errors import VergenceError

if TYPE_CHECKING:
    import ray.data

BLOCK_ROWS = 1024
BLOCK_BYTES = 32 << 20
STRETCH_BLOCKS = 64


@dataclass(frozen=True)
class Stream:
    """What a reader task needs to produce any row of the run."""

    index: Path
    plan: Plan
    epochs: int
    max_pixels: int
    decoded_bytes: int  # of a typical sample, for the size of blocks

    @property
    def steps(self) -> int:
        """Global batches of the whole run."""
        return self.epochs * self.plan.batches_per_epoch

    def rows(
        self, positions: np.ndarray, rank: int, world_size: int, start_step: int
    ) -> dict[str, np.ndarray]:
        """Rows of one rank, counted from the first sample of `start_step`.

        Returns image (uint8 (n, H, W, 3), or object array of unequal images), id int64, position int64
        (counted over the whole run) and bad bool (the planned sample was replaced).
        """
        size, share = self.plan.global_batch, self.plan.global_batch // world_size
        steps = start_step + positions // share
        run_positions = steps * size + rank * share + positions % share
        epochs = steps // self.plan.batches_per_epoch
        in_epoch = run_positions - epochs * self.plan.batches_per_epoch * size
        ids = np.empty(len(positions), np.int64)
        for epoch in np.unique(epochs):
            rows = epochs == epoch
            ids[rows] = self.plan.epoch(int(epoch))[in_epoch[rows]]
        images = reader_of(self.index, self.max_pixels).images(ids)
        bad = np.array([isinstance(image, BadSample) for image in images])
        for row in np.flatnonzero(bad):
            ids[row], images[row] = self.replacement(int(epochs[row]), int(in_epoch[row]))
        return {"image": stack(images), "id": ids, "position": run_positions, "bad": bad}

    def replacement(self, epoch: int, position: int) -> tuple[int, np.ndarray]:
        """The first good sample among the plan's candidates: the same one for every reader."""
        for candidate in self.plan.candidates(epoch, position):
            image = reader_of(self.index, self.max_pixels).images(np.array([candidate]))[0]
            if not isinstance(image, BadSample):
                return int(candidate), image
        raise VergenceError("no sample of the training shards can be read; run `vergence shards check`")

    def block_rows(self, share: int) -> int:
        """Rows of a Ray Data block: whole steps if one fits, so that a batch is a view of its block."""
        rows = max(1, min(BLOCK_ROWS, BLOCK_BYTES // self.decoded_bytes))
        return rows - rows % share if share <= rows else rows

    def stretch_steps(self, share: int) -> int:
        """Steps of a stretch: Ray Data makes all tasks of a dataset at its start, so a run is fed in stretches."""
        return max(1, STRETCH_BLOCKS * self.block_rows(share) // share)

    def dataset(self, rank: int, world_size: int, steps: range, reader_cpus: float) -> "ray.data.Dataset":
        """Rows of one rank for consecutive steps of the run, as Ray Data produces them."""
        import ray.data  # not at the top: reader tasks import this module and need none of it

        share = self.plan.global_batch // world_size
        num_rows = len(steps) * share

        def read(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            return self.rows(batch["id"], rank, world_size, steps.start)

        positions = ray.data.range(num_rows, override_num_blocks=max(1, num_rows // self.block_rows(share)))
        return positions.map_batches(read, batch_size=None, zero_copy_batch=True, num_cpus=reader_cpus)


@lru_cache(maxsize=4)
def reader_of(index: Path, max_pixels: int) -> Reader:
    """The process's own reader of an index, kept between tasks."""
    return Reader(Index(index), max_pixels=max_pixels)


def stack(images: list[Any]) -> np.ndarray:
    """uint8 (n, H, W, 3) where all sizes agree, else an object array of images."""
    if len({image.shape for image in images}) == 1:
        return np.stack(images)
    ragged = np.empty(len(images), object)
    ragged[:] = images
    return ragged
