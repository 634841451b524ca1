"""Images in, embeddings out: reading, decoding and resizing overlap with the model."""

import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from vergence.platform.data.decode import MAX_PIXELS, BadSample
from vergence.platform.data.index import Index
from vergence.platform.data.read import Reader
from vergence.platform.encoders.resize import resize

READ_AT_ONCE = 8  # full-size images that a thread holds

Ids = NDArray[np.int64]


class Source(Protocol):
    """Anything that gives images by id; used by one thread."""

    def images(self, ids: Ids) -> list[NDArray[np.uint8] | BadSample]: ...


def stream_images(
    open_source: Callable[[], Source],
    ids: Ids,
    size: int,
    *,
    batch: int = 256,
    progress: Callable[[int], None] = lambda count: None,
) -> Iterator[tuple[Ids, NDArray[np.uint8]]]:
    """Batches of (ids, images uint8 (n, size, size, 3)) in the order of `ids`; bad samples are left out.

    open_source is called once in each of the reading threads; progress gets the samples just read.
    """
    threads = len(os.sched_getaffinity(0))
    own = threading.local()

    def load(piece: Ids) -> tuple[int, Ids, list[NDArray[np.uint8]]]:
        if not hasattr(own, "source"):
            own.source = open_source()
        good, images = [], []
        for start in range(0, len(piece), READ_AT_ONCE):
            few = piece[start : start + READ_AT_ONCE]
            for sample, image in zip(few, own.source.images(few)):
                if not isinstance(image, BadSample):
                    good.append(sample)
                    images.append(resize(image, size))
        return len(piece), np.array(good, np.int64), images

    pool = ThreadPoolExecutor(threads)
    pieces = (ids[start : start + batch] for start in range(0, len(ids), batch))
    ahead = deque(pool.submit(load, piece) for piece in islice(pieces, threads + 1))
    try:
        while ahead:
            count, good, images = ahead.popleft().result()
            ahead.extend(pool.submit(load, piece) for piece in islice(pieces, 1))
            progress(count)
            if images:
                yield good, np.stack(images)
    finally:
        pool.shutdown(cancel_futures=True)


def shard_source(index: Index, max_pixels: int = MAX_PIXELS) -> Callable[[], Source]:
    """open_source of shards. The columns are loaded here, once: parquet files are not for several threads."""
    index.members("image", np.empty(0, np.int64))
    return lambda: Reader(index, max_pixels)
