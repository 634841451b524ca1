"""Where images come from by name: shards, or a folder of images, each with a key."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vergence.platform.data.decode import MAX_PIXELS, BadSample, decode
from vergence.platform.data.formats import IMAGE_EXTENSIONS
from vergence.platform.data.index import Index, open_index
from vergence.platform.data.read import Reader
from vergence.platform.data.walk import image_files
from vergence.platform.encoders.images import Ids, ImageSource, shard_source
from vergence.platform.errors import UserError
from vergence.platform.home import home
from vergence.platform.store import is_url, name_of
from vergence.platform.text import printable

FOLDER_PIECE = 5000  # images of a plain folder in one output file

Opener = Callable[[], ImageSource]


@dataclass(frozen=True)
class Images:
    """Images by id, from shards or from a folder."""

    pieces: list[tuple[str, Ids]]  # name -> ids: a shard, or a run of files
    open: Opener  # a reader for one thread
    part: Callable[[Ids], Opener]  # a reader of these ids, to be sent to another process
    key: Callable[[int], str]
    where: Callable[[int], str]
    digest: str
    notes: list[str]  # a line each for what was given and is not used
    classes: Callable[[Ids], tuple[Ids | None, Sequence[str]]] = lambda ids: (None, ())
    """Ids -> their labels, -1 for none, and the classes' names; (None, ()) without classes."""


def open_images(source: str) -> Images:
    """Shards by pattern or URL; a local folder without tars is a folder of images. UserError when there are none."""
    if is_url(source):
        return _open_shards(source)
    folder = Path(source).expanduser()
    if folder.is_dir() and not any(path.suffix.lower() == ".tar" for path in folder.iterdir()):
        return _open_folder(folder)
    return _open_shards(source)


def _open_shards(pattern: str) -> Images:
    index = open_index(pattern, home() / "index", progress=True)
    ids = np.arange(len(index), dtype=np.int64)
    shards = index.members("image", ids)[0]
    stems = [name_of(shard).rpartition(".")[0] or name_of(shard) for shard in index.shards]
    unique = len(set(stems)) == len(stems)
    names = [stem if unique else f"{i:06d}-{stem}" for i, stem in enumerate(stems)]
    return Images(
        pieces=[(name, ids[shards == i]) for i, name in enumerate(names)],
        open=shard_source(index),
        part=lambda ids: partial(_reader_of, index.path),
        key=index.key,
        where=index.where,
        digest=index.digest,
        notes=index.notes,
        classes=partial(_classes, index),
    )


def _classes(index: Index, ids: Ids) -> tuple[Ids | None, Sequence[str]]:
    labels = index.labels(ids)
    if labels is None:
        return None, ()
    return labels, index.classes or [str(number) for number in range(int(labels.max(initial=-1)) + 1)]


@lru_cache(maxsize=1)
def _reader_of(index: Path) -> Reader:
    """The process's own reader of an index, kept between blocks."""
    return Reader(Index(index), MAX_PIXELS)


class _Files:
    """The ImageSource of a folder."""

    def __init__(self, paths: Sequence[Path] | Mapping[int, Path]) -> None:
        self.paths = paths

    def images(self, ids: Ids) -> list[NDArray[np.uint8] | BadSample]:
        images: list[Any] = []
        for i in ids.tolist():
            try:
                images.append(decode(self.paths[i].read_bytes()))
            except BadSample as bad:
                images.append(bad)
        return images


def _open_folder(folder: Path) -> Images:
    found, left_out = image_files(folder)
    if not found:
        lines = "".join(f"; {line}" for line in left_out.lines())
        raise UserError(
            f"{folder}: no shards (*.tar) and no images (.{', .'.join(IMAGE_EXTENSIONS)}) in this folder{lines}"
        )
    keys, paths = [printable(image.path) for image in found], [folder / image.path for image in found]
    ids = np.arange(len(paths), dtype=np.int64)
    starts = range(0, len(ids), FOLDER_PIECE)
    listing = "".join(f"{key}\0{path.stat().st_size}\n" for key, path in zip(keys, paths))
    return Images(
        pieces=[(f"part-{i // FOLDER_PIECE:05d}", ids[i : i + FOLDER_PIECE]) for i in starts],
        open=lambda: _Files(paths),
        part=lambda ids: partial(_Files, {i: paths[i].absolute() for i in ids.tolist()}),
        key=keys.__getitem__,
        where=lambda i: printable(str(paths[i])),
        digest=hashlib.sha256(listing.encode()).hexdigest(),
        notes=left_out.lines(),
    )
