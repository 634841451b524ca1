"""The 32-px data plane alone: bytes against Ray Data's own reader, pixels against in-process decoding."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import psutil
import pyarrow as pa

from benchmarks import data
from benchmarks.measure import interleaved, spread, tree_cpu_s

NUM_IMAGES = 10_000
BYTES_ROWS = 5000  # a task: what a shard holds, so that both readers have as many tasks


def run(rounds: int, says: Callable[[str], None]) -> dict[str, Any]:
    """images per CPU-second of each way, their ratio, and Ray Data's overhead in ms an image."""
    import ray

    from vergence.platform.augment.presets import ViewSpec
    from vergence.platform.cluster.capacity import Need, ScaleConfig
    from vergence.platform.cluster.session import opened
    from vergence.platform.data.index import open_index
    from vergence.platform.data.plan import Plan
    from vergence.platform.data.read import KEPT, Reader
    from vergence.platform.data.stream import BLOCK_BYTES, Stream, reader_of

    pattern = data.shards_of(NUM_IMAGES)
    index = open_index(pattern, data.CACHE / "index")
    ray.data.DataContext.get_current().enable_progress_bars = False
    epochs = 4
    plan = Plan(len(index), 0.0, 0, 250)
    # one view, which enlarges: pictures travel whole, and nothing but that is measured
    views = (ViewSpec(size=32),)
    stream = Stream(index.path, plan, epochs, views, (), 1 << 24, 3072, 3072)
    ids = np.concatenate([plan.epoch(epoch) for epoch in range(epochs)])

    def ours_bytes() -> int:
        path, extension = index.path, index.image_extension

        def read(batch: dict[str, Any]) -> pa.Table:
            epoch, place = divmod(batch["id"], plan.num_samples)  # a block lies in one epoch
            found = reader_of(path, 1 << 24, KEPT).raw(plan.epoch(int(epoch[0]))[place], extension)
            return pa.table({"bytes": pa.array(found, pa.binary())})

        rows = ray.data.range(len(ids), override_num_blocks=len(ids) // BYTES_ROWS).map_batches(
            read, batch_size=None
        )
        return _count(rows)

    def ray_bytes() -> int:
        shards = index.shards * epochs
        return _count(ray.data.read_webdataset(shards, decoder=None))

    def ours_pixels() -> int:
        return _count(stream.dataset(0, 1, range(stream.steps), 1.0))

    def in_process() -> int:
        reader = Reader(index)
        return sum(
            len(np.array(reader.images(ids[start : start + 1000]))) for start in range(0, len(ids), 1000)
        )

    def timed(work: Callable[[], int]) -> Callable[[], float]:
        def measured() -> float:
            pid = psutil.Process().pid
            before = tree_cpu_s(pid)
            images = work()
            time.sleep(0.2)  # what the workers still do for it
            return images / (tree_cpu_s(pid) - before)

        return measured

    variants = {
        "bytes, our plan rows": timed(ours_bytes),
        "bytes, read_webdataset": timed(ray_bytes),
        "pixels, our stream": timed(ours_pixels),
        "pixels, in process": timed(in_process),
    }
    # a step a block
    seams = Stream(
        index.path, Plan(len(index), 0.0, 0, 250), 100, views, (), 1 << 24, 3072, BLOCK_BYTES // 250
    )
    with opened(Need(ScaleConfig(workers=1), readers=1, reader_cpus=1.0)):
        for variant in variants.values():
            variant()  # imports and worker starts
        results = interleaved(variants, rounds, says)
        within, at_seams = _waits(seams)
    speeds = {name: spread(rows) for name, rows in results.items()}
    ratio = spread(
        [a / b for a, b in zip(results["bytes, our plan rows"], results["bytes, read_webdataset"])]
    )
    overhead = spread(
        [(1 / a - 1 / b) * 1000 for a, b in zip(results["pixels, our stream"], results["pixels, in process"])]
    )
    return {
        "images_per_cpu_s": speeds,
        "ratios": {"bytes: plan rows / read_webdataset": ratio},
        "overhead_ms_per_image": overhead,
        "seconds": {
            "wait for a share inside a stretch": spread(within),
            "wait for a share where the next stretch begins": spread(at_seams),
        },
        "at_least": {"bytes: plan rows / read_webdataset": (ratio["median"], 5.0)},
        "at_most": {"overhead over in-process decoding, ms an image": (overhead["median"], 0.1)},
    }


def _waits(stream: Any) -> tuple[list[float], list[float]]:
    """Seconds that a consumer of 500 images/s waits for each share: inside stretches, and at their seams."""
    from vergence.platform.cluster.feed import Feed
    from vergence.platform.data.config import DataConfig

    within: list[float] = []
    at_seams: list[float] = []
    length, share = stream.stretch_steps(stream.plan.global_batch), stream.plan.global_batch
    shares = iter(Feed(stream, DataConfig(train=""), 0, 1, 0))
    for step in range(4 * length):
        begin = time.perf_counter()
        next(shares)
        waited = time.perf_counter() - begin
        if step:
            (at_seams if step % length == 0 else within).append(waited)
        time.sleep(share / 500)
    return within, at_seams


def _count(dataset: Any) -> int:
    dataset.context.execution_options.preserve_order = True
    return sum(table.num_rows for table in dataset.iter_batches(batch_size=None, batch_format="pyarrow"))
