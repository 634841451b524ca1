"""Each rank's planned samples, in order, read, decoded and cut by Ray Data (DESIGN C5).

A Dataset for a rank and a stretch of steps: `range` over its positions and one pure map
position -> plan -> bytes -> crops. So order and assignment depend on nothing that Ray decides.
"""

from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow.compute as pc

from vergence.platform.augment.crop import cut
from vergence.platform.augment.presets import ViewSpec
from vergence.platform.data.captions import Captions
from vergence.platform.data.decode import BadSample
from vergence.platform.data.index import Index
from vergence.platform.data.modality import LABEL, TEXT
from vergence.platform.data.plan import Plan
from vergence.platform.data.ragged import Array, Ragged
from vergence.platform.data.read import KEPT, Reader, Sample
from vergence.platform.data.remote import Access
from vergence.platform.data.share import Share, rows_of, table_of
from vergence.platform.data.vocabulary import Vocabulary
from vergence.platform.errors import VergenceError

if TYPE_CHECKING:
    import pyarrow as pa
    import ray.data

BLOCK_ROWS = 1024
BLOCK_BYTES = 32 << 20
DECODED_BYTES = 256 << 20  # of the pictures of a block, which a reader holds at once
STRETCH_BLOCKS = 64
MEASURED = 16  # samples
NOT_ONE = "no sample of the training shards can be read; run `vergence shards check`"


@dataclass(frozen=True)
class Stream:
    """What a reader task needs to produce any row of the run."""

    index: Path
    plan: Plan
    epochs: int
    views: tuple[ViewSpec, ...]  # none: pictures are not read
    fields: tuple[str, ...]  # what else is needed: of modality.FIELDS
    max_pixels: int
    decoded_bytes: int = 1 << 20  # of a typical picture
    row_bytes: int = 1 << 20  # of a typical sample as it travels
    captions: Captions | None = None  # what makes the text, where it is not read
    vocabulary: Vocabulary | None = None  # of the text; none: bytes
    access: Access = KEPT  # how shards in a store are read

    @property
    def steps(self) -> int:
        """Global batches of the whole run."""
        return self.epochs * self.plan.batches_per_epoch

    def measured(self) -> "Stream":
        """With the sizes of a few samples of this set; as it is if none of them can be read."""
        table = self._few(MEASURED)
        if table is None:
            return self
        decoded = pc.sum(pc.multiply(table["height"], table["width"])).as_py() * 3 if self.views else 0
        return replace(self, decoded_bytes=decoded // len(table), row_bytes=table.nbytes // len(table))

    def example(self, num: int) -> Share:
        """The good ones among the first `num` training samples. Raises VergenceError: there is none."""
        table = self._few(num)
        if table is None:
            raise VergenceError(NOT_ONE)
        return Share.of(table)

    def _few(self, num: int) -> "pa.Table | None":
        """The good ones among the first `num` training samples."""
        ids = self.plan.training_ids(np.arange(min(num, self.plan.num_training)))
        good = {int(i): x for i, x in zip(ids, self._read(ids)) if isinstance(x, Sample)}
        found = np.array(list(good), np.int64)
        return self._table(found, found, found < 0, 0, list(good.values())) if good else None

    def share(self, step: int, rank: int, world_size: int) -> Share:
        """What one rank gets for a step of the run, read in this process."""
        size = self.plan.global_batch // world_size
        return Share.of(self.table(np.arange(size), rank, world_size, step))

    def table(self, positions: np.ndarray, rank: int, world_size: int, start_step: int) -> "pa.Table":
        """Rows of one rank, counted from the first sample of `start_step`; see `Share`."""
        size, share = self.plan.global_batch, self.plan.global_batch // world_size
        steps = start_step + positions // share
        run_positions = steps * size + rank * share + positions % share
        self._fetch_ahead(int(steps[0]), int(steps[-1]) + 1)
        epochs = steps // self.plan.batches_per_epoch
        in_epoch = run_positions - epochs * self.plan.batches_per_epoch * size
        ids = np.empty(len(positions), np.int64)
        for epoch in np.unique(epochs):
            rows = epochs == epoch
            ids[rows] = self.plan.epoch(int(epoch))[in_epoch[rows]]
        read = self._read(ids)
        bad = np.array([isinstance(sample, BadSample) for sample in read])
        for row in np.flatnonzero(bad):
            ids[row], read[row] = self.replacement(int(epochs[row]), int(in_epoch[row]))
        samples = [sample for sample in read if isinstance(sample, Sample)]
        return self._table(ids, run_positions, bad, epochs, samples)

    def _fetch_ahead(self, start_step: int, stop_step: int) -> None:
        """A part of the window that follows comes to the node while these steps are read; all ranks ask for the same."""
        kinds = ["image"] if self.views else self._members
        if self.plan.order.kind == "full" or self._reader.remote is None or not kinds:
            return
        per_epoch = self.plan.batches_per_epoch
        for epoch in range(start_step // per_epoch, (stop_step - 1) // per_epoch + 1):
            first, last = (
                min(max(step - epoch * per_epoch, 0), per_epoch) for step in (start_step, stop_step)
            )
            ids = self.plan.coming(epoch, first, last, is_last=epoch + 1 == self.epochs)
            self._reader.fetch_ahead(ids, kinds[0])  # a piece holds all members of its samples

    def _table(
        self,
        ids: np.ndarray,
        positions: np.ndarray,
        bad: np.ndarray,
        epochs: np.ndarray | int,
        samples: list[Sample],
    ) -> "pa.Table":
        pictures = [sample.picture for sample in samples if sample.picture is not None]
        pieces = cut(pictures, ids, epochs, self.views, self.plan.seed) if self.views else None
        fields: dict[str, Array | Ragged] = {}
        for name in self.fields:
            if name == LABEL:
                labels = self._reader.index.labels(ids)
                assert labels is not None, "a set without classes was refused before the run"
                fields[name] = labels
            elif name == TEXT and self.captions is not None:
                labels = self._reader.index.labels(ids)
                assert labels is not None, "a set without classes was refused before the run"
                fields[name] = self.captions.drawn(labels, ids, epochs, self.plan.seed)
            else:
                fields |= rows_of(name, [sample.members[name] for sample in samples])
        if self.vocabulary is not None:
            text = fields[TEXT]
            assert isinstance(text, Ragged)
            fields[TEXT] = self.vocabulary.encode(text)
        remote = self._reader.remote
        store = (remote.retries(), remote.is_bypassed) if remote else (0, False)
        return table_of(ids, positions, bad, pieces, fields, *store)

    def _read(self, ids: np.ndarray) -> list[Sample | BadSample]:
        return self._reader.samples(ids, bool(self.views), self._members)

    @property
    def _members(self) -> list[str]:
        """What is read of a sample beside its picture."""
        return [name for name in self.fields if name != TEXT or self.captions is None]

    @property
    def _reader(self) -> Reader:
        return reader_of(self.index, self.max_pixels, self.access)

    def replacement(self, epoch: int, position: int) -> tuple[int, Sample]:
        """The first good sample among the plan's candidates: the same one for every reader."""
        for candidate in self.plan.candidates(epoch, position):
            (sample,) = self._read(np.array([candidate]))
            if isinstance(sample, Sample):
                return int(candidate), sample
        raise VergenceError(NOT_ONE)

    def block_rows(self, share: int) -> int:
        """Rows of a Ray Data block: whole steps if one fits, so that a batch is a view of its block."""
        most = BLOCK_BYTES // self.row_bytes, DECODED_BYTES // max(1, self.decoded_bytes)
        rows = max(1, min(BLOCK_ROWS, *most))
        return rows - rows % share if share <= rows else rows

    def stretch_steps(self, share: int) -> int:
        """Steps of a stretch: Ray Data makes all tasks of a dataset at its start, so a run is fed in stretches."""
        return max(1, STRETCH_BLOCKS * self.block_rows(share) // share)

    def dataset(self, rank: int, world_size: int, steps: range, reader_cpus: float) -> "ray.data.Dataset":
        """Rows of one rank for consecutive steps of the run, as Ray Data produces them."""
        import ray.data  # not at the top: reader tasks import this module and need none of it

        share = self.plan.global_batch // world_size
        num_rows = len(steps) * share

        def read(batch: dict[str, np.ndarray]) -> "pa.Table":
            return self.table(batch["id"], rank, world_size, steps.start)

        positions = ray.data.range(num_rows, override_num_blocks=max(1, num_rows // self.block_rows(share)))
        return positions.map_batches(read, batch_size=None, zero_copy_batch=True, num_cpus=reader_cpus)


@lru_cache(maxsize=4)
def reader_of(index: Path, max_pixels: int, access: Access) -> Reader:
    """The process's own reader of an index, kept between tasks."""
    return Reader(Index(index), max_pixels, access)
