"""Members of shards that lie in a store: alone, or in pieces of many samples that the node keeps.

A piece begins where every `chunk`-th sample begins and ends where the next piece does, so the chunks of the order (order.py)
are fetched by one request each, for all their samples and all processes of the node.
"""

import errno
import hashlib
import logging
import os
import weakref
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from vergence.platform.data.index import Index
from vergence.platform.data.node_cache import Claim, NodeCache, default_folder
from vergence.platform.errors import VergenceError
from vergence.platform.store import PATIENCE_S, Store, store_of

GAP = 64 << 10  # bytes between two members that are rather read than asked for a second time
LONGEST = 8 << 20  # bytes of members that are asked for together
OPEN_PIECES = 256
CLAIMED = 32  # pieces that are fetched at a time
HELD = 256 << 20  # bytes of them: they are in memory until they are kept
TRIES = 3  # to have a piece on the disk before others push it out, or wipe it

BYPASSED = "cannot be used; the store is read without a cache"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Access:
    """How remote members are read.

    chunk: samples of a piece that is kept on the node; None: members are read alone.  only_if_all_fit: keep pieces only
    if the node has room for the whole set, as whoever reads in any order must.  folder: of the pieces, by default that
    for temporary files.  limit: bytes there.
    """

    patience_s: float = PATIENCE_S
    chunk: int | None = 64
    only_if_all_fit: bool = False
    folder: Path | None = None
    limit: int = 10 * 10**9


class Piece(NamedTuple):
    """Bytes start ... stop-1 of a shard; name: of its file."""

    shard: int
    start: int
    stop: int
    name: str


class Remote:
    """Reads members of an index whose shards are in a store; one a process or thread.

    is_bypassed: whether the node could not keep pieces.
    """

    def __init__(self, index: Index, access: Access) -> None:
        self.index, self.access = index, access
        self.is_bypassed = False
        self.cache = self._opened_cache()
        self._retries_told = 0
        self._files: OrderedDict[int, BinaryIO] = OrderedDict()  # by piece
        self._ahead: Future[None] | None = None
        weakref.finalize(self, _close, self._files)

    def read(self, shards: np.ndarray, offsets: np.ndarray, sizes: np.ndarray) -> list[bytes]:
        """Bytes of members, sorted by shard and offset; int64 arrays, (n,). Raises VergenceError."""
        if self.cache is not None:
            try:
                return self._read_pieces(shards, offsets, sizes)
            except OSError as error:
                self._bypass(self.cache.folder, error)
        return self._read_alone(shards, offsets, sizes)

    def retries(self) -> int:
        """Requests of this process that were asked for again since this was last called."""
        told, self._retries_told = self._retries_told, sum(store.retries for store in set(self._stores))
        return self._retries_told - told

    def _opened_cache(self) -> NodeCache | None:
        """None: members are read alone."""
        access = self.access
        if access.chunk is None or (access.only_if_all_fit and sum(self.index.shard_sizes) > access.limit):
            return None
        try:
            return NodeCache(access.folder or default_folder(), access.limit)
        except OSError as error:
            self._bypass(access.folder or Path(error.filename), error)
            return None

    def _bypass(self, folder: Path, error: OSError) -> None:
        self.is_bypassed, self.cache = True, None
        log.warning("%s: %s (%s)", folder, BYPASSED, error.strerror or error)

    def fetch_ahead(self, shards: np.ndarray, offsets: np.ndarray) -> None:
        """Have the pieces of these members on the node soon; what fails is told to who reads them."""
        if self.cache is None or not len(shards) or (self._ahead is not None and not self._ahead.done()):
            return
        pieces = np.unique(self._piece_of(shards, offsets)).tolist()

        def fetch() -> None:
            try:
                self._fetch(pieces)
            except (OSError, VergenceError) as error:
                log.debug("%s", error)

        self._ahead = self._thread.submit(fetch)

    @cached_property
    def _thread(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(1, "ahead")

    @cached_property
    def _stores(self) -> list[Store]:
        """Of each shard: a pattern may name several buckets."""
        return [store_of(shard, self.access.patience_s) for shard in self.index.shards]

    def _reading(self, shard: int, start: int, stop: int) -> "Future[bytes]":
        version = self.index.shard_versions[shard]
        return self._stores[shard].reading(self.index.shards[shard], start, stop - start, version)

    def _read_alone(self, shards: np.ndarray, offsets: np.ndarray, sizes: np.ndarray) -> list[bytes]:
        """Neighbours by one request."""
        found, asked = list[bytes](), list[tuple[int, slice, Future[bytes]]]()
        ends = offsets + sizes
        for rows in _runs(shards, offsets, ends):
            start, stop = int(offsets[rows][0]), int(ends[rows].max())
            asked.append((start, rows, self._reading(int(shards[rows][0]), start, stop)))
        for start, rows, coming in asked:
            data = coming.result()
            places = zip((offsets[rows] - start).tolist(), (ends[rows] - start).tolist())
            found += [data[first:last] for first, last in places]
        return found

    def _read_pieces(self, shards: np.ndarray, offsets: np.ndarray, sizes: np.ndarray) -> list[bytes]:
        pieces = self._piece_of(shards, offsets)
        self._fetch(np.unique(pieces).tolist())
        found = list[bytes]()
        for number, offset, size in zip(pieces.tolist(), offsets.tolist(), sizes.tolist()):
            piece = self._pieces[number]
            data = os.pread(self._open(number).fileno(), size, offset - piece.start)
            assert len(data) == size, "a member lies in one piece"
            found.append(data)
        return found

    def _open(self, number: int) -> BinaryIO:
        """A piece that is whole, fetched if need be. Raises OSError: the cache cannot keep it."""
        assert self.cache is not None
        piece, file = self._pieces[number], self._files.get(number)
        size = piece.stop - piece.start
        if file is not None and self.cache.is_whole(piece.name, file, size):
            self._files.move_to_end(number)
            return file
        self._drop(number)
        for attempt in range(TRIES):
            if attempt:  # it was damaged, or has made room
                self._fetch([number])
            if (file := self.cache.open(piece.name, size)) is not None:
                break
        else:
            raise OSError(errno.ENOSPC, "too small: pieces make room before they are read")
        for other in [other for other, each in self._files.items() if not os.fstat(each.fileno()).st_nlink]:
            self._drop(other)  # made room: as long as it is open it takes it
        self._files[number] = file
        if len(self._files) > OPEN_PIECES:
            self._drop(next(iter(self._files)))
        return file

    def _drop(self, number: int) -> None:
        file = self._files.pop(number, None)
        if file is not None:
            file.close()

    def _fetch(self, numbers: Sequence[int]) -> None:
        """Have these pieces on the node; those that another process fetches are waited for."""
        assert self.cache is not None
        missing = (n for n in numbers if not self.cache.has(self._pieces[n].name))
        sizes = [self._pieces[n].stop - self._pieces[n].start for n in numbers]
        at_once = max(1, min(CLAIMED, HELD // max([1, *sizes])))
        while some := [*islice(missing, at_once)]:
            for number in self._fetch_claimed(some):
                if self._fetch_claimed([number], self.access.patience_s):
                    raise OSError(errno.ETIMEDOUT, "another process holds a piece and does not fetch it")

    def _fetch_claimed(self, numbers: Sequence[int], wait_s: float = 0) -> list[int]:
        """Fetch those that nobody else fetches, or has fetched after so many seconds; the others are returned."""
        cache, others = self.cache, list[int]()
        assert cache is not None
        with ExitStack() as stack:
            coming = list[tuple[Claim, Future[bytes]]]()
            for number in numbers:
                piece = self._pieces[number]
                claim = cache.claim(piece.name, wait_s)
                if claim is None:
                    others.append(number)
                    continue
                stack.enter_context(claim)
                if not cache.has(piece.name):
                    coming.append((claim, self._reading(piece.shard, piece.start, piece.stop)))
            for i, (claim, data) in enumerate(coming):
                claim.keep(data.result())
                claim.release()
                coming[i] = claim, Future()  # lets the bytes go
        return others

    def _piece_of(self, shards: np.ndarray, offsets: np.ndarray) -> np.ndarray:
        """Numbers of the pieces in which members begin, int64 (n,)."""
        first_shards, starts = self._starts
        longest = max(self.index.shard_sizes) + 1
        keys, asked = (
            s.astype(np.int64) * longest + o for s, o in ((first_shards, starts), (shards, offsets))
        )
        return np.searchsorted(keys, asked, side="right") - 1

    @cached_property
    def _starts(self) -> tuple[np.ndarray, np.ndarray]:
        """Shard and first byte of every piece, in order; the first of a shard begins at its first byte."""
        assert self.access.chunk is not None
        extensions = self.index.extensions
        kind = (
            "image"
            if self.index.extensions_of("image")
            else max(extensions, key=lambda name: extensions[name])
        )
        first = np.arange(0, len(self.index), self.access.chunk)
        shards, offsets, _ = self.index.members(kind, first)
        there = offsets >= 0
        each = np.arange(len(self.index.shards))
        shards = np.concatenate([each, shards[there].astype(np.int64)])
        offsets = np.concatenate([np.zeros_like(each), offsets[there]])
        order = np.lexsort((offsets, shards))
        return shards[order], offsets[order]

    @cached_property
    def _pieces(self) -> Sequence[Piece]:
        shards, starts = (array.tolist() for array in self._starts)
        stops = [
            following if shard == beside else self.index.shard_sizes[shard]
            for shard, beside, following in zip(shards, [*shards[1:], -1], [*starts[1:], 0])
        ]
        return [Piece(*place, self._name(*place)) for place in zip(shards, starts, stops)]

    def _name(self, shard: int, start: int, stop: int) -> str:
        place = f"{self.index.shards[shard]}\n{self.index.shard_versions[shard]}\n{start}\n{stop}"
        return hashlib.sha256(place.encode("utf-8", "surrogateescape")).hexdigest()[:40]


def _runs(shards: np.ndarray, offsets: np.ndarray, ends: np.ndarray) -> Iterator[slice]:
    """Rows that one request reads."""
    if not len(shards):
        return
    apart = (np.diff(shards) != 0) | (offsets[1:] - ends[:-1] > GAP) | (offsets[1:] < offsets[:-1])
    start = 0
    for row in range(1, len(shards) + 1):
        if row == len(shards) or apart[row - 1] or ends[row] - offsets[start] > LONGEST:
            yield slice(start, row)
            start = row


def _close(files: Mapping[int, BinaryIO]) -> None:
    for file in files.values():
        file.close()
