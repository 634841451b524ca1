"""Samples by id: bytes and pixels, read from the shards at the places that the index names."""

import os
import time
import weakref
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from io import FileIO
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vergence.platform.data.decode import MAX_PIXELS, BadSample, decode
from vergence.platform.data.formats import MEMBER_EXTENSIONS
from vergence.platform.data.index import Index
from vergence.platform.data.modality import LABEL, MODALITIES, Parts
from vergence.platform.data.remote import Access, Remote
from vergence.platform.errors import VergenceError
from vergence.platform.store import is_url

OPEN_FILES = 64
TRIES, PAUSE_S = 3, 0.2
KEPT = Access()


class Sample(NamedTuple):
    """What was read of one sample. picture: uint8 (H, W, 3), or None where none is wanted."""

    picture: NDArray[np.uint8] | None
    members: dict[str, Parts]  # by modality


class Reader:
    """Random access to the samples of an index; one a process or thread.

    access: how shards that lie in a store are read.

    A sample is bad because of its bytes, for every reader alike. An error of the storage is no property of
    the sample: it is tried three times and then raised (OSError).
    """

    def __init__(self, index: Index, max_pixels: int = MAX_PIXELS, access: Access = KEPT) -> None:
        self.index, self.max_pixels = index, max_pixels
        self.remote = Remote(index, access) if is_url(index.shards[0]) else None
        self._files: OrderedDict[int, FileIO] = OrderedDict()
        weakref.finalize(
            self, _close, self._files
        )  # it lives in tasks, threads and generators: nobody's to close

    def samples(self, ids: np.ndarray, pictures: bool, fields: Sequence[str]) -> list["Sample | BadSample"]:
        """All that is wanted of each sample, or the first reason why it cannot be used; int64 ids, (n,).

        fields: of modality.FIELDS; classes are no members, see `Index.labels`.
        """
        names = [name for name in fields if name != LABEL]
        found = self.images(ids) if pictures else [None] * len(ids)
        members = [self.field(ids, name) for name in names]
        return [_sample(picture, dict(zip(names, parts))) for picture, *parts in zip(found, *members)]

    def images(self, ids: np.ndarray) -> list[np.ndarray | BadSample]:
        """Pixels of each sample, uint8 (H, W, 3), or why there are none; in the order of ids, int64 (n,)."""
        return [self._image(data) for data in self.raw(ids, "image")]

    def field(self, ids: np.ndarray, modality: str) -> list[Parts | BadSample]:
        """What one member of each sample holds, or why it holds nothing; in the order of ids, int64 (n,)."""
        return [self._member(data, modality) for data in self.raw(ids, modality)]

    def raw(self, ids: np.ndarray, kind: str) -> list[bytes | None]:
        """Bytes of one member of each sample (see `Index.members`), None where it has no such member."""
        shards, offsets, sizes = self.index.members(kind, np.asarray(ids, np.int64))
        found: list[bytes | None] = [None] * len(shards)
        rows = np.lexsort((offsets, shards))  # each file from front to back
        rows = rows[offsets[rows] >= 0]
        if self.remote is not None:
            for row, data in zip(rows.tolist(), self.remote.read(shards[rows], offsets[rows], sizes[rows])):
                found[row] = data
            return found
        places = (
            array[rows].tolist() for array in (shards, sizes, offsets)
        )  # plain ints: three times as fast
        for row, shard, size, offset in zip(rows.tolist(), *places):
            found[row] = self._read(shard, size, offset)
        return found

    def fetch_ahead(self, ids: np.ndarray, kind: str) -> None:
        """Have what lies in a store on this node soon; see `Remote`."""
        if self.remote is not None:
            shards, offsets, _ = self.index.members(kind, ids)
            there = offsets >= 0
            self.remote.fetch_ahead(shards[there], offsets[there])

    def _image(self, data: bytes | None) -> np.ndarray | BadSample:
        if data is None:
            return BadSample("no image member")
        try:
            return decode(data, self.max_pixels)
        except BadSample as bad:
            return bad

    def _member(self, data: bytes | None, modality: str) -> Parts | BadSample:
        if data is None:
            return BadSample(f"no {modality} member (.{', .'.join(MEMBER_EXTENSIONS[modality])})")
        try:
            return MODALITIES[modality].decode(data)
        except BadSample as bad:
            return bad

    def _read(self, shard: int, size: int, offset: int) -> bytes:
        for attempt in range(1, TRIES + 1):
            try:
                data = os.pread(self._open(shard), size, offset)
                break
            except OSError as error:
                if shard in self._files:  # a stale handle is opened anew
                    self._files.pop(shard).close()
                if attempt == TRIES and isinstance(error, FileNotFoundError):
                    raise VergenceError(
                        f"{self.index.shards[shard]}: is gone; it was there when it was indexed"
                    ) from None
                if attempt == TRIES:
                    raise
                time.sleep(PAUSE_S * attempt)
        if len(data) < size:
            path = self.index.shards[shard]
            raise VergenceError(f"{path}: shorter than when it was indexed; it has changed during the run")
        return data

    def _open(self, shard: int) -> int:
        file = self._files.get(shard)
        if file is None:
            file = self._files[shard] = FileIO(str(self.index.shards[shard]))
            size = os.fstat(file.fileno()).st_size
            if size != self.index.shard_sizes[shard]:
                raise VergenceError(
                    f"{self.index.shards[shard]}: has {size:,} bytes and had {self.index.shard_sizes[shard]:,} when "
                    "it was indexed; it has changed during the run"
                )
            if len(self._files) > OPEN_FILES:
                self._files.popitem(last=False)[1].close()
        else:
            self._files.move_to_end(shard)  # the most recent last
        return file.fileno()


def _close(files: Mapping[int, FileIO]) -> None:
    for file in files.values():
        file.close()


def _sample(
    picture: NDArray[np.uint8] | BadSample | None, members: Mapping[str, Parts | BadSample]
) -> Sample | BadSample:
    bad = [part for part in (picture, *members.values()) if isinstance(part, BadSample)]
    if bad or isinstance(picture, BadSample):
        return bad[0]
    return Sample(
        picture, {name: parts for name, parts in members.items() if not isinstance(parts, BadSample)}
    )
