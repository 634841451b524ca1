"""How a rank is fed: its stream through Ray Data in stretches, the next one opened before the last has ended.

Ray Data makes one task a block when a dataset starts, and keeps it: with one dataset for the whole run, start
and memory would grow with the run (20,000 blocks: half a minute and 600 MB before the first batch).
"""

import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain
from typing import Any

from ray.data._internal.execution.execution_callback import ExecutionCallback

from vergence.platform.data.config import DataConfig
from vergence.platform.data.share import Share
from vergence.platform.data.stream import Stream

READ_AHEAD_BYTES = (
    32 << 20
)  # per rank, of samples as they travel, and at least four blocks; else the store fills up
OPEN_AHEAD_BLOCKS = 16  # before a stretch ends its successor is opened: it needs some tenths of a second


class Feed:
    """The shares of one rank from `start_step` to the end of the run, in order; reading starts at once."""

    def __init__(self, stream: Stream, data: DataConfig, rank: int, world_size: int, start_step: int) -> None:
        self.stream, self.data, self.rank, self.world_size = stream, data, rank, world_size
        self.share = stream.plan.global_batch // world_size
        length = stream.stretch_steps(self.share)
        self._stretches = [
            range(start, min(start + length, stream.steps))
            for start in range(start_step, stream.steps, length)
        ]
        self._opener = ThreadPoolExecutor(1, thread_name_prefix="stretch")
        self._next = self._open_later(0)

    def __iter__(self) -> Iterator[Share]:
        ahead = max(1, OPEN_AHEAD_BLOCKS * self.stream.block_rows(self.share) // self.share)
        for number, steps in enumerate(self._stretches):
            assert self._next is not None
            shares, self._next = self._next.result(), None
            for step, share in zip(steps, shares, strict=True):
                if self._next is None and step >= steps.stop - ahead:
                    self._next = self._open_later(number + 1)
                yield share

    def _open_later(self, number: int) -> "Future[Iterator[Share]] | None":
        if number == len(self._stretches):
            return None
        return self._opener.submit(self._open, self._stretches[number])

    def _open(self, steps: range) -> Iterator[Share]:
        """A stretch whose first share is there."""
        dataset = self.stream.dataset(self.rank, self.world_size, steps, self.data.reader_cpus)
        block_bytes = self.stream.row_bytes * self.stream.block_rows(self.share)
        context, options = dataset.context, dataset.context.execution_options
        options.preserve_order = True
        options.resource_limits = options.resource_limits.copy(
            cpu=max(self.data.reader_cpus, self.data.readers * self.data.reader_cpus / self.world_size),
            object_store_memory=max(READ_AHEAD_BYTES, 4 * block_bytes),
        )
        context.enable_progress_bars = False
        context.custom_execution_callback_classes = [Pause]
        context.raise_original_map_exception = True  # what a reader raises is raised here, without a wrapper
        tables: Any = dataset.iter_batches(batch_size=self.share, batch_format="pyarrow", prefetch_batches=2)
        shares = map(Share.of, tables)
        return chain([next(shares)], shares)


class Pause(ExecutionCallback):
    """Lets Ray Data's scheduling loop rest while there is nothing to schedule.

    The loop (ray 2.60, StreamingExecutor.run) waits only for tasks that run; once read-ahead is full it spins,
    and it does so in a thread of the training worker: measured, one core lost and training at a third of its
    speed. An execution callback is the place where it can be slowed down without touching Ray.
    """

    SHORT_S, LONGEST_S = 0.02, 0.2

    def __init__(self) -> None:
        self.pause_s, self.resumed_s = 0.0, time.perf_counter()

    def on_execution_step(self, executor: Any) -> None:
        # a step that took long has waited for a task: there is work
        waited = time.perf_counter() - self.resumed_s > self.SHORT_S
        self.pause_s = 0.0 if waited else min(self.LONGEST_S, 2 * self.pause_s + 0.001)
        time.sleep(self.pause_s)
        self.resumed_s = time.perf_counter()
