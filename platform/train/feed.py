"""How Ray Train hands each rank its stream (DESIGN C5)."""

from pathlib import Path
from typing import Any

import ray.train

from vergence.platform.data.stream import Pause, Stream
from vergence.platform.runs.commit import newest

READ_AHEAD_BYTES = 32 << 20  # per rank, of decoded samples, and at least four blocks; else the store fills up


class PlanConfig(ray.train.DataConfig):
    """Hands each rank its own Dataset, made anew at every start of the worker group.

    The newest commit is read here, once for all ranks: start step and commit travel as attributes of the
    iterator, so that every rank loads exactly that one.
    """

    def __init__(self, stream: Stream, commits: Path, readers: int, reader_cpus: float) -> None:
        super().__init__()
        self.stream, self.commits = stream, commits
        self.readers, self.reader_cpus = readers, reader_cpus

    def configure(
        self, datasets: Any, world_size: int, worker_handles: Any, worker_node_ids: Any, **kwargs: Any
    ) -> list[dict[str, Any]]:
        commit = newest(self.commits)
        start_step = commit.step if commit else 0
        block_bytes = self.stream.decoded_bytes * self.stream.block_rows(
            self.stream.plan.global_batch // world_size
        )
        shards: list[dict[str, Any]] = []
        for rank in range(world_size):
            dataset = self.stream.dataset(rank, world_size, start_step, self.reader_cpus)
            options = dataset.context.execution_options
            options.preserve_order = True
            options.resource_limits = options.resource_limits.copy(
                cpu=max(self.reader_cpus, self.readers * self.reader_cpus / world_size),
                object_store_memory=max(READ_AHEAD_BYTES, 4 * block_bytes),
            )
            dataset.context.enable_progress_bars = False
            dataset.context.custom_execution_callback_classes = [Pause]  # type: ignore[list-item]
            iterator: Any = dataset.iterator()
            iterator.start_step, iterator.commit = start_step, commit.path if commit else None
            shards.append(dict.fromkeys(datasets, iterator))
        return shards
