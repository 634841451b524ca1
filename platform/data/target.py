"""Where `shards pack` writes: a folder, or a folder of a store. What is there is whole."""

import fcntl
import json
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Protocol

from vergence.platform.data.contents import read_contents
from vergence.platform.data.expand import SIDE
from vergence.platform.data.side_file import packed
from vergence.platform.errors import UserError
from vergence.platform.store import Changed, NotThere, is_url, name_of, store_of


class Target(Protocol):
    """where: path or URL, without a slash at its end."""

    where: str

    def only_writer(self, name: str) -> AbstractContextManager[object]:
        """While the block runs, no other `shards pack` of this name may do harm. Raises UserError: one is at work."""
        ...

    def shards(self, name: str) -> set[str]:
        """File names of the shards of this name that are there."""
        ...

    def read(self, file: str) -> Any:
        """A JSON file; None: it is not there. Raises UserError: damaged."""
        ...

    def write_new(self, file: str, value: Any) -> Any:
        """Write a JSON file unless it is there; what is there then."""
        ...

    def shard(self, file: str) -> AbstractContextManager[Path]:
        """A path to write a shard to, which is put in its place at the end of the block."""
        ...


def open_target(out: str | Path) -> Target:
    """Raises UserError: the store of this URL takes no files, refuses, or is not installed."""
    return _Stored(str(out)) if is_url(out) else _Folder(Path(out).expanduser())


class _Folder:
    def __init__(self, folder: Path) -> None:
        self.folder, self.where = folder, str(folder)

    @contextmanager
    def only_writer(self, name: str) -> Iterator[None]:
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / f".{name}.lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(f"{self.where}: another `shards pack` is writing here; wait for it") from None
            yield

    def shards(self, name: str) -> set[str]:
        return _shards(name, os.listdir(self.folder))

    def read(self, file: str) -> Any:
        path = self.folder / file
        return _parsed(path.read_bytes(), str(path)) if path.exists() else None

    def write_new(self, file: str, value: Any) -> Any:
        temporary = self.folder / f".{file}.part"
        temporary.write_bytes(_text(value))
        os.replace(temporary, self.folder / file)
        return value

    @contextmanager
    def shard(self, file: str) -> Iterator[Path]:
        temporary = self.folder / f".{file}.part"
        try:
            yield temporary
            with temporary.open("rb") as written:
                os.fsync(written.fileno())
            os.replace(temporary, self.folder / file)
        finally:
            temporary.unlink(missing_ok=True)


class _Stored:
    """Two at once do no harm here, so there is no lock: the first to write NAME.pack.json and classes.json is right,
    and whoever packs the same source writes the same bytes.
    """

    def __init__(self, url: str) -> None:
        self.where, self._store = url.rstrip("/"), store_of(url)
        if url.startswith("http"):
            raise UserError(f"{url}: a web server takes no files; pack into a folder, s3://, gs:// or az://")

    def only_writer(self, name: str) -> AbstractContextManager[object]:
        return nullcontext()

    def shards(self, name: str) -> set[str]:
        listed = (each.url.removeprefix(f"{self.where}/") for each in self._store.list(self.where))
        return _shards(name, listed)

    def read(self, file: str) -> Any:
        url = f"{self.where}/{file}"
        try:
            return _parsed(self._store.get(url)[0], url)
        except NotThere:
            return None

    def write_new(self, file: str, value: Any) -> Any:
        try:
            self._store.put(f"{self.where}/{file}", _text(value), None)
        except Changed:
            return self.read(file)
        return value

    @contextmanager
    def shard(self, file: str) -> Iterator[Path]:
        """With the file that says what it holds."""
        url = f"{self.where}/{file}"
        with tempfile.TemporaryDirectory(prefix="vergence-") as folder:
            temporary = Path(folder, name_of(url))
            yield temporary
            size = temporary.stat().st_size
            with temporary.open("rb") as written:
                contents = read_contents(written, size, url)
            self._store.put(url, temporary)
            self._store.put(url + SIDE, packed(contents, self._store.stat(url)))


def _shards(name: str, files: "Iterator[str] | list[str]") -> set[str]:
    return {file for file in files if re.fullmatch(rf"{re.escape(name)}-[0-9][^/]*\.tar", file)}


def _text(value: Any) -> bytes:
    return (json.dumps(value, indent=1) + "\n").encode()


def _parsed(data: bytes, where: str) -> Any:
    try:
        return json.loads(data)
    except ValueError:
        raise UserError(f"{where}: damaged, not JSON; delete it and pack into another folder") from None
