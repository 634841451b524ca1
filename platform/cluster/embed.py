"""Embeddings by a Ray session: Ray Data reads, actors embed, and the vectors come back in order.

Images travel in blocks. What a block needs is in its row of the dataset, so that whatever fails costs that block
and nothing else: Ray starts the actor anew and gives it the block again.
"""

import warnings
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from vergence.platform.cluster.capacity import Need, ScaleConfig, check_local, physical_cpus
from vergence.platform.cluster.session import nodes, opened, place
from vergence.platform.encoders.encoder import Embedder, Rows
from vergence.platform.encoders.images import Ids, ImageSource, stream_images
from vergence.platform.errors import VergenceError

BLOCK_ROWS = 1024
BLOCK_BYTES = 32 << 20  # of resized images
READER_CPUS = 0.5  # not the one CPU of an actor: Ray Data would have actors read
RETRIES = 3  # of a block whose actor dies

LOWER = "--workers"


@dataclass(frozen=True)
class Block:
    """Images that are read and embedded together; open: to be called where they are read."""

    open: Callable[[], ImageSource]
    ids: Ids


def blocks_of(ids: Ids, size: int, part: Callable[[Ids], Callable[[], ImageSource]]) -> list[Block]:
    """The blocks of these ids, images of `size` pixels each."""
    rows = max(1, min(BLOCK_ROWS, BLOCK_BYTES // (size * size * 3)))
    pieces = [ids[start : start + rows] for start in range(0, len(ids), rows)]
    return [Block(part(piece), piece) for piece in pieces]


def need_of(workers: int, gpus: bool) -> Need:
    """What `workers` actors and their readers need; gpus: whether each takes a GPU."""
    scale = ScaleConfig(workers=workers, gpus_per_worker=int(gpus))
    return Need(scale, readers=max(workers, physical_cpus() - workers), reader_cpus=READER_CPUS)


def embedded(
    encoder: Embedder, blocks: Sequence[Block], *, workers: int, gpus: bool | None
) -> Generator[tuple[Ids, Rows]]:
    """The readable ids of each block, in order, and their vectors, by `workers` actors.

    gpus: whether each actor takes a GPU; None: if the session has as many.
    A session that the caller has opened is joined and left alone. Raises UserError: the session is too small;
    VergenceError: a block ended its actor again and again; OSError: the storage cannot be read.
    """
    import ray

    need = need_of(workers, bool(gpus))
    if place() == "own":
        check_local(need, LOWER)
    with opened(need, lower=LOWER):
        if gpus is None:
            gpus = sum(node.gpus for node in nodes()) >= workers
        try:
            yield from _run(ray.put(encoder), encoder.size, blocks, workers, gpus)
        except ray.exceptions.RayError as error:
            raise VergenceError(
                f"embedding failed: {(str(error).splitlines() or ['?'])[0]}; what is written stays, the same command "
                "goes on"
            ) from error


def _run(
    encoder: Any, size: int, blocks: Sequence[Block], workers: int, gpus: bool
) -> Generator[tuple[Ids, Rows]]:
    import ray.data
    from ray import cloudpickle
    from ray.util.annotations import RayDeprecationWarning

    from vergence.platform.cluster.feed import Pause

    def read(table: pa.Table) -> pa.Table:
        block: Block = cloudpickle.loads(table["block"][0].as_py())
        found = stream_images(block.open, block.ids, size, threads=1, batch=len(block.ids))
        none = np.empty(0, np.int64), np.empty((0, size, size, 3), np.uint8)
        ids, images = next(found, none)
        return _row(table, ids, images)

    rows = [{"number": i, "block": cloudpickle.dumps(block)} for i, block in enumerate(blocks)]
    with warnings.catch_warnings():
        # Ray Data has no other way yet to say how often: without it a block that ends its actor does so for ever
        warnings.simplefilter("ignore", RayDeprecationWarning)
        dataset = (
            ray.data.from_items(rows, override_num_blocks=len(rows))
            .map_batches(read, batch_size=1, batch_format="pyarrow", num_cpus=READER_CPUS)
            .map_batches(
                _Actor,
                fn_constructor_args=(encoder, gpus),
                batch_size=1,
                batch_format="pyarrow",
                compute=ray.data.ActorPoolStrategy(size=workers),
                num_cpus=1,
                num_gpus=int(gpus),
                max_task_retries=RETRIES,
            )
        )
    context = dataset.context
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    context.custom_execution_callback_classes = [Pause]
    context.raise_original_map_exception = True  # what a reader raises is raised here, without a wrapper
    tables: Any = dataset.iter_batches(batch_size=1, batch_format="pyarrow", prefetch_batches=2)
    for number, table in zip(range(len(blocks)), tables, strict=True):
        assert table["number"][0].as_py() == number, "blocks came in another order"
        ids, vectors = _cells(table, np.float32)
        yield ids, vectors.reshape(len(ids), -1)


class _Actor:
    """An encoder at work."""

    def __init__(self, encoder: Any, gpu: bool) -> None:
        import ray

        embedder: Embedder = ray.get(encoder)
        self.encoder = embedder.to(torch.device("cuda" if gpu else "cpu"))
        self.shape = (-1, embedder.size, embedder.size, 3)

    def __call__(self, table: pa.Table) -> pa.Table:
        ids, images = _cells(table, np.uint8)
        return _row(table, ids, self.encoder(images.reshape(self.shape)))


def _row(table: pa.Table, ids: Ids, values: np.ndarray) -> pa.Table:
    """A block as one row of a table, so that one without a readable image is a row too."""
    cells = [pa.array([array.tobytes()], pa.large_binary()) for array in (ids, values)]
    return pa.table([table["number"], *cells], names=["number", "ids", "values"])


def _cells(table: pa.Table, dtype: type) -> tuple[Ids, np.ndarray]:
    ids, values = (table[name][0].as_buffer() for name in ("ids", "values"))
    return np.frombuffer(ids, np.int64), np.frombuffer(values, dtype)
