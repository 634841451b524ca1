"""Pieces of remote shards on a disk of this node, shared by all its processes.

A file a piece, its sha256 behind its bytes: one that was cut short or changed is fetched again. Who fetches a piece holds a
lock on its draft, so that the others of the node wait for it and do not fetch it too; a killed process holds nothing.
The pieces whose last use is longest ago make room.
"""

import contextlib
import errno
import fcntl
import hashlib
import os
import stat
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

DIGEST = 32  # bytes, of sha256
FILLED_TO = 0.8  # of the limit, when room has been made
ROOM_EVERY = 20  # parts of the limit: after each that a process has written, it looks whether room is needed
PIECE = ".piece"  # what has another ending is none of ours, and stays
DRAFT = ".piece.part"
DRAFT_LIFE_S = 3600.0
LOOK_S = 0.005  # between two looks whether another has fetched a piece


def default_folder() -> Path:
    """Of this user, on this node. Raises OSError: somebody else was there before."""
    folder = Path(tempfile.gettempdir()) / f"vergence-cache-{os.getuid()}"
    folder.mkdir(exist_ok=True, mode=0o700)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
        raise PermissionError(errno.EPERM, "is somebody else's", str(folder))
    return folder


class NodeCache:
    """Methods raise OSError where the folder cannot be used (a full disk): it is only a cache.

    limit: bytes; processes that fill it at the same time can exceed it by a twentieth each, up to what FILLED_TO leaves.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder, self.limit = folder, limit
        self._make_folder()
        self._unchecked = limit  # bytes written since room was made: look before the first
        self._whole: dict[str, tuple[int, int, int]] = {}  # name -> stamp of the file whose digest was right

    def path(self, name: str) -> Path:
        return self.folder / f"{name}{PIECE}"

    def draft(self, name: str) -> Path:
        """Of a piece that is being fetched."""
        return self.folder / f"{name}{DRAFT}"

    def has(self, name: str) -> bool:
        """Whether there is such a piece, whole or not."""
        return os.path.exists(self.path(name))

    def open(self, name: str, size: int) -> BinaryIO | None:
        """A piece, checked; None: it is not there, or was not whole and is now gone."""
        try:
            file = self.path(name).open("rb")
        except FileNotFoundError:
            return None
        if self.is_whole(name, file, size):
            os.utime(file.fileno(), ns=(time.time_ns(), os.fstat(file.fileno()).st_mtime_ns))  # its last use
            return file
        file.close()
        self.path(name).unlink(missing_ok=True)
        return None

    def is_whole(self, name: str, file: BinaryIO, size: int) -> bool:
        """Whether an opened piece is there, as it was written; read only if it has changed since it was last asked."""
        status = os.fstat(file.fileno())
        if not status.st_nlink:
            return False
        stamp = status.st_ino, status.st_mtime_ns, status.st_size
        if self._whole.get(name) == stamp:
            return True
        data = os.pread(file.fileno(), size + DIGEST, 0)
        whole = status.st_size == size + DIGEST and hashlib.sha256(data[:size]).digest() == data[size:]
        if whole:
            self._whole[name] = stamp
        return whole

    def claim(self, name: str, wait_s: float = 0) -> "Claim | None":
        """The right to fetch a piece; None: another still has it after so many seconds."""
        draft, until = self.draft(name), time.monotonic() + wait_s
        while True:
            self._make_folder()  # somebody may have wiped it
            file = draft.open("ab+")
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.close()
                if time.monotonic() >= until:
                    return None
                time.sleep(LOOK_S)
                continue
            if _is_at(file, draft):
                return Claim(self, name, file)
            file.close()  # it has become the piece meanwhile, or was tidied away

    def written(self, size: int) -> None:
        """Make room from time to time."""
        self._unchecked += size
        if self._unchecked * ROOM_EVERY >= self.limit:
            self._unchecked = 0
            self._make_room()

    def _make_folder(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    def _make_room(self) -> None:
        found = list[tuple[float, int, str]]()
        with os.scandir(self.folder) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):
                    status = entry.stat()
                    if entry.name.endswith(PIECE):
                        found.append((status.st_atime, status.st_size, entry.path))
                    elif entry.name.endswith(DRAFT) and time.time() - status.st_mtime > DRAFT_LIFE_S:
                        _delete_unheld(entry.path)
        excess = sum(size for _, size, _ in found) - self.limit * FILLED_TO
        for _, size, path in sorted(found) if excess > self.limit * (1 - FILLED_TO) / 2 else ():
            if excess <= 0:
                break
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            excess -= size


class Claim:
    """As a context manager; the claim ends with the block."""

    def __init__(self, cache: NodeCache, name: str, file: BinaryIO) -> None:
        self.cache, self.name, self.file = cache, name, file

    def keep(self, data: bytes) -> None:
        """Write the piece, whole or not at all."""
        draft = self.cache.draft(self.name)
        try:
            self.file.truncate(0)  # what a killed process left
            self.file.write(data)
            self.file.write(hashlib.sha256(data).digest())
            self.file.flush()
            os.replace(draft, self.cache.path(self.name))
            self.cache.written(len(data))
        except FileNotFoundError:  # the folder was wiped meanwhile: whoever wants the piece fetches it again
            pass
        except OSError:
            draft.unlink(missing_ok=True)
            raise

    def release(self) -> None:
        """Once more is no error."""
        if self.file.closed:
            return
        if _is_at(self.file, draft := self.cache.draft(self.name)):
            draft.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # of a full disk, once more
            self.file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def _is_at(file: BinaryIO, path: Path) -> bool:
    """Whether an opened file still has this path."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _delete_unheld(path: str) -> None:
    with contextlib.suppress(OSError), open(path, "rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.unlink(path)
