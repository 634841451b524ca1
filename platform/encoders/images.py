"""Images as an encoder takes them: read, decoded and resized by threads, while the model is at work."""

import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from vergence.platform.data.decode import MAX_PIXELS, BadSample
from vergence.platform.data.index import Index
from vergence.platform.data.read import KEPT, Reader
from vergence.platform.data.remote import Access
from vergence.platform.encoders.resize import resize

READ_AT_ONCE = 8  # full-size images that a thread holds
PIECE = 32  # images that a thread takes at a time
AHEAD_BYTES = 256 << 20  # of resized images read before they are wanted, whatever the number of threads

Ids = NDArray[np.int64]


class ImageSource(Protocol):
    """Anything that gives images by id; used by one thread."""

    def images(self, ids: Ids) -> list[NDArray[np.uint8] | BadSample]: ...


def stream_images(
    open_source: Callable[[], ImageSource],
    ids: Ids,
    size: int,
    *,
    threads: int,
    batch: int = 256,
    progress: Callable[[int], None] = lambda count: None,
) -> Iterator[tuple[Ids, NDArray[np.uint8]]]:
    """Batches of (ids, images uint8 (n, size, size, 3)) in the order of `ids`; bad samples are left out.

    open_source is called once in each of the reading threads; threads: how many; progress gets the number of samples
    just read.
    """
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

    pool, pieces = ThreadPoolExecutor(threads), _pieces(ids, batch)
    ahead: deque[tuple[Future[Any], bool]] = deque()

    def submit(number: int) -> None:
        ahead.extend((pool.submit(load, piece), last) for piece, last in islice(pieces, number))

    most = max(1, AHEAD_BYTES // (PIECE * size * size * 3))
    submit(min(most, threads + -(-batch // PIECE)))
    good: list[Ids] = []  # of the batch in hand
    images: list[NDArray[np.uint8]] = []
    try:
        while ahead:
            future, last = ahead.popleft()
            count, some, their_images = future.result()
            submit(1)
            progress(count)
            good.append(some)
            images += their_images
            if last:
                if images:
                    yield np.concatenate(good), np.stack(images)
                good, images = [], []
    finally:
        pool.shutdown(cancel_futures=True)


def _pieces(ids: Ids, batch: int) -> Iterator[tuple[Ids, bool]]:
    """The ids of each batch in pieces of at most PIECE, and whether a piece ends its batch."""
    for start in range(0, len(ids), batch):
        whole = ids[start : start + batch]
        for first in range(0, len(whole), PIECE):
            yield whole[first : first + PIECE], first + PIECE >= len(whole)


def shard_source(
    index: Index, max_pixels: int = MAX_PIXELS, access: Access = KEPT
) -> Callable[[], ImageSource]:
    """open_source of shards. The columns are loaded here, once: parquet files are not for several threads."""
    index.members("image", np.empty(0, np.int64))
    return lambda: Reader(index, max_pixels, access)
