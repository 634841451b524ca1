"""The images (or sounds) below a folder, and what was left out.

A real folder is read once, however many links lead to it: first all that are reached without a link, then
the targets of links in the order of their paths. Hidden files and folders are left out.
"""

import errno
import heapq
import os
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from vergence.platform.data.formats import (
    IMAGE_EXTENSIONS,
    MEMBER_EXTENSIONS,
    START,
    common_name,
    image_format,
)
from vergence.platform.text import printable

NAMED = 3  # of those left out for a reason that is worth a name
REASONS = 8  # of those that are listed
_DEAD = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)  # what a link that leads nowhere ends in


def few(names: Sequence[str], total: int | None = None) -> str:
    """The first few of some names, for a message; total: how many there are, if `names` is cut already."""
    more = (total or len(names)) > NAMED
    return ", ".join([*map(printable, names[:NAMED]), *(["..."] if more else [])])


class SourceFile(NamedTuple):
    path: str  # below the folder, as the system names it
    stem: str  # without the ending, where that names a format
    extension: str  # lower case; jpg for .jfif


class LeftOut:
    """Counts what was given and is not used, by reason; the first few by name."""

    def __init__(self) -> None:
        self.names: dict[str, list[str]] = {}
        self.counts: Counter[str] = Counter()

    def add(self, reason: str, name: str = "", count: int = 1) -> None:
        """reason: such as `dead links` or `.heic`."""
        self.counts[reason] += count
        names = self.names.setdefault(reason, [])
        if name and len(names) < NAMED:
            names.append(name)

    def merge(self, other: "LeftOut") -> None:
        self.counts.update(other.counts)
        for reason, names in other.names.items():
            own = self.names.setdefault(reason, [])
            own += names[: NAMED - len(own)]

    def lines(self, what: str = "left out") -> list[str]:
        """One line, or none: `left out: .heic (3), dead links (1: cat/9.jpg)`."""
        parts = [self._part(reason, count) for reason, count in self.counts.most_common(REASONS)]
        others = self.counts.total() - sum(count for _, count in self.counts.most_common(REASONS))
        parts += [f"others ({others:,})"] if others else []
        return [f"{what}: {', '.join(parts)}"] if parts else []

    def _part(self, reason: str, count: int) -> str:
        names = self.names[reason]
        return f"{reason} ({count:,}" + (f": {few(names, count)})" if names else ")")


def image_files(root: Path) -> tuple[list[SourceFile], LeftOut]:
    """The images below a folder, in the order of their paths, and what else is there.

    Raises OSError: a folder or a file that may not be read.
    """
    return _files(root, _image)


def audio_files(root: Path) -> tuple[list[SourceFile], LeftOut]:
    """The sounds below a folder, likewise."""
    return _files(root, _sound)


def _files(
    root: Path, look: Callable[[Path, str, LeftOut], SourceFile | None]
) -> tuple[list[SourceFile], LeftOut]:
    left_out = LeftOut()
    found = [
        file
        for folder, names in _walk(root, left_out)
        for name in names
        if (file := look(root, folder + name, left_out))
    ]
    return sorted(found), left_out


def folders(root: str) -> list[str]:
    """`root` and all folders below it, each real one once; all end in a slash, but an empty root."""
    return [root + folder for folder, _ in _walk(root or ".", LeftOut())]


def _walk(root: Path | str, left_out: LeftOut) -> Iterator[tuple[str, list[str]]]:
    """Each folder, as a path below root that is empty or ends in a slash, with the names of its files."""
    real, links, seen = deque([""]), list[str](), set[tuple[int, int]]()
    while real or links:
        folder = real.popleft() if real else heapq.heappop(links)
        status, files = os.stat(os.path.join(root, folder)), list[str]()
        if (status.st_dev, status.st_ino) in seen:
            left_out.add("folders read already", folder)
            continue
        seen.add((status.st_dev, status.st_ino))
        with os.scandir(os.path.join(root, folder)) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                kind = "hidden names" if entry.name.startswith(".") else _kind(entry)
                if kind == "file":
                    files.append(entry.name)
                elif kind == "folder" and entry.is_symlink():
                    heapq.heappush(links, f"{folder}{entry.name}/")
                elif kind == "folder":
                    real.append(f"{folder}{entry.name}/")
                else:
                    left_out.add(kind, "" if kind == "hidden names" else folder + entry.name)
        yield folder, files


def _kind(entry: "os.DirEntry[str]") -> str:
    """`file`, `folder`, or why it is neither; no system call but for links."""
    try:
        if entry.is_dir():
            return "folder"
        if entry.is_file():
            return "file"
        return "dead links" if entry.is_symlink() and not os.path.exists(entry) else "pipes or devices"
    except OSError as error:
        if error.errno not in _DEAD:
            raise
        return "dead links"


def _split(path: str) -> tuple[str, str]:
    """A path without its ending, and the ending; no dot in the name: all of it, and nothing."""
    stem, dot, ending = path.rpartition(".")
    return (path, "") if not dot or "/" in ending else (stem, ending)


def _sound(root: Path, path: str, left_out: LeftOut) -> SourceFile | None:
    stem, ending = _split(path)
    if ending.lower() in MEMBER_EXTENSIONS["audio"]:
        return SourceFile(path, stem, ending.lower())
    left_out.add(f".{printable(ending.lower())}" if ending else "no ending")
    return None


def _image(root: Path, path: str, left_out: LeftOut) -> SourceFile | None:
    stem, ending = _split(path)
    if ending.lower() in IMAGE_EXTENSIONS:
        return SourceFile(path, stem, common_name(ending.lower()))
    with open(os.path.join(root, path), "rb") as file:
        found = image_format(file.read(START), weak=not ending)
    if found:
        return SourceFile(path, path, found)
    left_out.add(f".{printable(ending.lower())}" if ending else "no ending")
    return None
