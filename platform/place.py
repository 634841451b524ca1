"""A folder into which a verb writes: of this machine, or of a store. A file appears in it when it is whole."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Protocol

from vergence.platform.errors import UserError
from vergence.platform.files import replacing
from vergence.platform.store import NotThere, is_url, store_of


class Place(Protocol):
    """where: path or URL, without a slash at its end."""

    where: str

    def names(self) -> list[str]:
        """Of the files directly in it, sorted; none if it is not there."""
        ...

    def tail(self, name: str, size: int) -> bytes | None:
        """The last `size` bytes of a file, or all; None: it is not there."""
        ...

    def writing(self, name: str) -> AbstractContextManager[Path]:
        """A path to write to; at the end of the block the file is in its place."""
        ...

    def delete(self, name: str) -> None: ...


def place_of(folder: str | Path) -> Place:
    """Raises UserError: the store of this URL takes no files, refuses, or is not installed."""
    return _Stored(str(folder).rstrip("/")) if is_url(folder) else _Folder(Path(folder))


class _Folder:
    def __init__(self, folder: Path) -> None:
        self.folder, self.where = folder, str(folder)

    def names(self) -> list[str]:
        return sorted(os.listdir(self.folder)) if self.folder.exists() else []

    def tail(self, name: str, size: int) -> bytes | None:
        try:
            with (self.folder / name).open("rb") as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - size))
                return file.read()
        except FileNotFoundError:
            return None

    @contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        self.folder.mkdir(parents=True, exist_ok=True)
        with replacing(self.folder / name) as draft:
            yield draft

    def delete(self, name: str) -> None:
        (self.folder / name).unlink()


class _Stored:
    def __init__(self, url: str) -> None:
        if url.startswith("http"):
            raise UserError(f"{url}: a web server takes no files; write into a folder, s3://, gs:// or az://")
        self.where, self._store = url, store_of(url)

    def names(self) -> list[str]:
        below = (each.url.removeprefix(f"{self.where}/") for each in self._store.list(self.where))
        return [name for name in below if "/" not in name]

    def tail(self, name: str, size: int) -> bytes | None:
        url = f"{self.where}/{name}"
        try:
            found = self._store.stat(url)
            start = max(0, found.size - size)
            return self._store.read(url, [(start, found.size - start)], found.version)[0]
        except NotThere:
            return None

    @contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(prefix="vergence-") as folder:
            draft = Path(folder, name)
            yield draft
            self._store.put(f"{self.where}/{name}", draft)

    def delete(self, name: str) -> None:
        self._store.delete(f"{self.where}/{name}")
