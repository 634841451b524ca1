"""What the shards of a store hold: from the files beside them, or from the shards, each read once from end to end."""

import hashlib
import io
import json
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

from vergence.platform.data.contents import Contents, read_contents
from vergence.platform.data.expand import SIDE
from vergence.platform.data.index_cache import SHARDS, used
from vergence.platform.data.progress import Bar
from vergence.platform.data.side_file import packed, unpacked
from vergence.platform.data.tar import DamagedShard
from vergence.platform.errors import UserError
from vergence.platform.files import replacing
from vergence.platform.store import AT_ONCE, NotThere, Object, store_of

STREAMS = 8  # shards that are read at the same time
BACK = 2 << 20  # bytes by which the walk of a tar goes back at most


class Stored:
    """The contents of shards, and files that keep them: beside the shard, or where writing is refused in `cache`."""

    def __init__(self, cache: Path, progress: bool = False) -> None:
        self.folder, self.progress = cache / SHARDS, progress
        self.refusal: str | None = None  # why nothing is written beside the shards
        self._num_read, self._stopped = 0, threading.Event()

    def contents(self, shards: Sequence[Object]) -> list[Contents | DamagedShard]:
        """Of each shard, or why it cannot be used.

        What is done is kept: the next call goes on. Raises UserError, VergenceError: the store does.
        """
        found: dict[int, Contents | DamagedShard] = {}
        with _threads(AT_ONCE) as threads, self._bar("reading what shards hold", shards) as advance:
            for i, known in enumerate(threads.map(self._known, shards)):
                advance(1)
                if known is not None:
                    found[i] = known
        missing = [i for i in range(len(shards)) if i not in found]
        with _threads(STREAMS) as threads, self._bar("reading shards once", missing) as advance:
            try:
                tasks = {threads.submit(self._read, shards[i]): i for i in missing}
                for task in as_completed(tasks):
                    found[tasks[task]] = task.result()
                    advance(1)
            except BaseException:
                self._stopped.set()
                raise
        self._num_read = len(missing)
        return [found[i] for i in range(len(shards))]

    def _bar(self, what: str, items: Sequence[Any]) -> Bar:
        return Bar(what, len(items), enabled=self.progress)

    @property
    def said(self) -> list[str]:
        """What was done, in a line or none."""
        if not self._num_read:
            return []
        where = f"in {self.folder} ({self.refusal})" if self.refusal else f"beside them (NAME.tar{SIDE})"
        return [f"{self._num_read:,} shards were read once, from end to end; what they hold is kept {where}"]

    def _known(self, shard: Object) -> Contents | None:
        try:
            contents = unpacked(store_of(shard.url).get(shard.url + SIDE)[0], shard)
        except (NotThere, UserError):  # who may not list is refused what is not there
            contents = None
        if contents is not None:
            return contents
        path = self._path(shard)
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return None
        contents = unpacked(data, shard)
        if contents is not None:
            used(path)
            self._keep(shard, data)
        return contents

    def _read(self, shard: Object) -> Contents | DamagedShard:
        pieces = self._until_stopped(store_of(shard.url).stream(shard))
        with io.BufferedReader(Streamed(pieces), 1 << 16) as file:
            try:
                contents = read_contents(cast(BinaryIO, file), shard.size, shard.url)
            except DamagedShard as damage:
                return damage
        self._keep(shard, packed(contents, shard))
        return contents

    def _until_stopped(self, pieces: Iterator[bytes]) -> Iterator[bytes]:
        for piece in pieces:
            if self._stopped.is_set():
                raise InterruptedError
            yield piece

    def _keep(self, shard: Object, data: bytes) -> None:
        if self.refusal is None and shard.url.startswith("http"):
            self.refusal = "a web server takes no files"
        if self.refusal is None:
            try:
                store_of(shard.url).put(shard.url + SIDE, data)
                return
            except UserError as error:
                self.refusal = str(error).removeprefix(f"{shard.url}{SIDE}: ")
        self.folder.mkdir(parents=True, exist_ok=True)
        with replacing(self._path(shard)) as temporary:
            temporary.write_bytes(data)

    def _path(self, shard: Object) -> Path:
        return self.folder / f"{hashlib.sha256(json.dumps(shard).encode()).hexdigest()[:24]}{SIDE}"


class Streamed(io.RawIOBase):
    """The pieces of an object as a file that is read forward, and back by at most BACK bytes."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces, self._held = pieces, deque[tuple[int, bytes]]()  # with where each begins
        self._position = self._end = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = offset + (self._position if whence == io.SEEK_CUR else 0)
        return self._position

    def readinto(self, buffer: Any) -> int:
        while self._end <= self._position:
            piece = next(self._pieces, None)
            if piece is None:
                return 0
            self._held.append((self._end, piece))
            self._end += len(piece)
            while len(self._held) > 1 and self._end - self._held[1][0] >= BACK:
                self._held.popleft()
        start, piece = next(each for each in reversed(self._held) if each[0] <= self._position)
        part = piece[self._position - start : self._position - start + len(buffer)]
        buffer[: len(part)] = part
        self._position += len(part)
        return len(part)


@contextmanager
def _threads(count: int) -> Iterator[ThreadPoolExecutor]:
    """What has not begun when the block ends, by whatever error, does not begin."""
    threads = ThreadPoolExecutor(count, "shards")
    try:
        yield threads
    finally:
        threads.shutdown(cancel_futures=True)
