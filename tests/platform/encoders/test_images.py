"""Images streamed to a model: their order, and what is read at a time."""

import threading
import time
from typing import Any

import numpy as np
import pytest

from vergence.platform.data.decode import BadSample
from vergence.platform.encoders import images as module
from vergence.platform.encoders.images import PIECE, stream_images

SIZE, BATCH = 2, 2 * PIECE + 5
IDS = np.arange(1000, 1000 + 3 * BATCH + 7)


class Counting:
    """An image of each id's own value; every tenth cannot be read. Knows who read what."""

    def __init__(self) -> None:
        self.read, self.opened = 0, 0
        self.threads: set[int] = set()
        self.lock = threading.Lock()

    def open(self) -> "Counting":
        with self.lock:
            self.opened += 1
        return self

    def images(self, ids: np.ndarray) -> list[Any]:
        with self.lock:
            self.read += len(ids)
            self.threads.add(threading.get_ident())
        whole = [np.full((SIZE, SIZE, 3), i % 251, np.uint8) for i in ids]
        return [BadSample("bad") if i % 10 == 0 else image for i, image in zip(ids, whole)]


@pytest.mark.parametrize("threads", [1, 3, 16])
def test_batches_hold_what_was_asked_for_in_order_whatever_the_number_of_threads(threads: int) -> None:
    source = Counting()
    seen: list[int] = []
    batches = list(stream_images(source.open, IDS, SIZE, batch=BATCH, threads=threads, progress=seen.append))
    expected = [IDS[start : start + BATCH] for start in range(0, len(IDS), BATCH)]
    assert [ids.tolist() for ids, _ in batches] == [ids[ids % 10 > 0].tolist() for ids in expected]
    for ids, images in batches:
        assert images.shape == (len(ids), SIZE, SIZE, 3)
        assert (images[:, 0, 0, 0] == ids % 251).all()
    assert sum(seen) == source.read == len(IDS)


def test_reads_with_as_many_threads_as_it_is_given() -> None:
    source = Counting()
    list(stream_images(source.open, IDS, SIZE, threads=2))
    assert len(source.threads) <= 2
    assert source.opened <= 2


def test_reads_ahead_no_more_than_fits_its_bytes_whatever_the_number_of_threads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "AHEAD_BYTES", 3 * PIECE * SIZE * SIZE * 3)
    source = Counting()
    stream: Any = stream_images(source.open, IDS, SIZE, batch=PIECE, threads=16)
    next(stream)
    deadline = time.monotonic() + 10
    while source.read < 4 * PIECE and time.monotonic() < deadline:  # what was asked for ahead
        time.sleep(0.01)
    time.sleep(0.05)
    assert source.read == 4 * PIECE
    stream.close()


def test_a_batch_of_unreadable_images_is_left_out() -> None:
    ids = np.concatenate([np.full(PIECE, 10), np.arange(1, 4)])
    ((good, _),) = stream_images(Counting().open, ids, SIZE, batch=PIECE, threads=1)
    assert good.tolist() == [1, 2, 3]
