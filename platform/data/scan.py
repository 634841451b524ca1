"""What a set of shards holds: samples, classes, and every image that ends in none of them.

Members are grouped by webdataset's rule: key = the path up to the first dot of the base name, extension = the
rest in lower case, one sample = a run of members with the same key.
"""

import hashlib
import json
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa

from vergence.platform.data import tar
from vergence.platform.data.formats import IMAGE_EXTENSIONS, START, image_format, is_image
from vergence.platform.data.labels import MAX_BYTES, class_text, number
from vergence.platform.data.progress import Bar
from vergence.platform.data.walk import LeftOut
from vergence.platform.errors import UserError
from vergence.platform.store import Object, name_of

if TYPE_CHECKING:
    from hashlib import _Hash

CHUNK = 1 << 16  # samples grouped at a time, and rows of a parquet row group
MAX_EXTENSIONS = 64
VERSION = 4  # of the index: its columns, and what its metadata hold
SECOND = "second images of a key, which ends at the first dot of a file name (`vergence shards pack` replaces dots)"
LINKS = "links to other members (tar --dereference --hard-dereference packs the files)"

Sample = tuple[str, dict[str, tuple[int, int]]]  # key, {extension: (offset, size)}
Chunk = dict[str, pa.Array]  # by column; arrow arrays, for 10^7 Python objects would not fit


class Scanned(NamedTuple):
    """What was found.

    table: the index's columns; in its metadata digest, shards, extensions, class names and notes.
    By path or URL: damaged: shards that cannot be read, and why.  without_images: those that can be and hold none; they are
    left out, unless no shard has any.
    lost: images that end in no sample, by shard.  views: those of named views, beside the image of their sample.
    mixed: a line about classes of two kinds.
    """

    table: pa.Table
    damaged: dict[str, str]
    without_images: dict[str, str]
    lost: dict[str, LeftOut]
    views: LeftOut
    mixed: str | None


def scan(shards: Sequence[Object], progress: bool = False) -> Scanned:
    """Read the headers of all shards, and the .cls members."""
    pictures, others = _Found(), _Found()  # of shards with images, and of those without
    damaged, without_images, lost = dict[str, str](), dict[str, str](), dict[str, LeftOut]()
    with Bar("scanning shards", len(shards), enabled=progress) as advance:
        for shard in shards:
            path = shard.url
            digests, outside = [pictures.sha256.copy(), others.sha256.copy()], LeftOut()
            try:
                found = _shard(Path(path), digests, outside)
            except UserError as error:
                damaged[path] = str(error).removeprefix(f"{path}: ")
            else:
                kinds = {
                    name.removesuffix(".size") for chunk in found for name in chunk if name.endswith(".size")
                }
                if image_extensions(kinds):
                    pictures.add(shard, found, digests[0])
                else:
                    others.add(shard, found, digests[1])
                    kept = f"only .{', .'.join(sorted(kinds))}" if kinds else "no files"
                    without_images[path] = (
                        f"the tar holds no images ({kept}); an image is KEY.jpg, .png, .webp, ..."
                    )
                if outside.counts:
                    lost[path] = outside
            advance(1)
    chosen = pictures if pictures.shards else others
    used = chosen.shards
    table, classes, mixed = _labelled(_table(chosen.chunks))
    counts = {
        name[:-5]: len(table) - table[name].null_count
        for name in table.column_names
        if name.endswith(".size")
    }
    views = _second_images(table, counts, used, lost)
    scanned = Scanned(table, damaged, without_images, lost, views, mixed)
    about = {
        "schema": VERSION,
        "digest": chosen.sha256.hexdigest(),
        "shards": used,
        "extensions": counts,
        "classes": classes,
        "notes": _notes(scanned, counts, len(shards)),
    }
    return scanned._replace(table=table.replace_schema_metadata({"vergence": json.dumps(about)}))


class _Found:
    """The samples of some shards, in order."""

    def __init__(self) -> None:
        self.sha256, self.shards, self.chunks = hashlib.sha256(), list[Object](), list[Chunk]()

    def add(self, shard: Object, chunks: list[Chunk], sha256: "_Hash") -> None:
        """sha256: continued by this shard."""
        for chunk in chunks:
            number = np.full(len(chunk["key"]), len(self.shards), np.int32)
            self.chunks.append({"shard": pa.array(number)} | chunk)
        self.shards.append(shard)
        self.sha256 = sha256


def samples(path: Path, lost: LeftOut) -> Iterator[Sample]:
    """The samples of one tar, in order; images among the members that end in none are added to `lost`.

    Raises DamagedShard, UserError (two members of one name).
    """
    current: str | None = None
    group: dict[str, tuple[int, int]] = {}
    for name, offset, size in tar.members(path):
        folder, slash, base = name.rpartition("/")
        stem, dot, extension = base.partition(".")
        reason = _outside(name, stem, dot, size)
        if reason:
            if is_image(base.lower()) if size < 0 else _starts_as_image(path, offset, size):
                lost.add(reason, name)
            continue
        key, extension = folder + slash + stem, extension.lower()
        if key != current:
            if current is not None:
                yield current, group
            current, group = key, {}
        elif extension in group:
            raise UserError(f"{path}: the sample {key} has two members .{extension}; pack it again")
        group[extension] = (offset, size)
    if current is not None:
        yield current, group


def _outside(name: str, stem: str, dot: str, size: int) -> str | None:
    """Why a member ends in no sample."""
    if size < 0:
        return LINKS if size == tar.LINK else "sparse files (tar without --sparse packs them whole)"
    if not stem:
        return "hidden names"
    if name.startswith("__") and "__" in name[2:].partition("/")[0]:
        return "names __like this__, which webdataset keeps for its own notes"
    return None if dot else "names without an ending"


def _starts_as_image(path: Path, offset: int, size: int) -> bool:
    with path.open("rb", buffering=0) as file:
        return image_format(os.pread(file.fileno(), min(START, size), offset)) is not None


def image_extensions(extensions: Collection[str]) -> list[str]:
    """Those of images, best first; `seg.png` counts only where no plain one exists (then only the first)."""
    plain = [extension for extension in IMAGE_EXTENSIONS if extension in extensions]
    return plain or sorted(filter(is_image, extensions))[:1]


def _shard(path: Path, digests: Sequence["_Hash"], lost: LeftOut) -> list[Chunk]:
    def note(data: bytes) -> None:
        for digest in digests:
            digest.update(data)

    note(f"{path.name}\n".encode("utf-8", "surrogateescape"))
    chunks, found = list[Chunk](), samples(path, lost)
    while batch := list(islice(found, CHUNK)):
        keys, places = _places(batch, path)
        note("\0".join(keys).encode())
        chunk = {"key": pa.array(keys, pa.string())}
        for extension, (offset, size) in places.items():
            note(f"{extension}\n".encode() + offset.astype("<i8").tobytes() + size.astype("<i8").tobytes())
            chunk[f"{extension}.offset"] = pa.array(offset, mask=offset < 0)
            chunk[f"{extension}.size"] = pa.array(size, mask=offset < 0)
        if "cls" in places:
            chunk["label"] = pa.array(_classes(path, *places["cls"]), pa.string()).dictionary_encode()
        chunks.append(chunk)
    return chunks


def _classes(path: Path, offsets: np.ndarray, sizes: np.ndarray) -> list[str | None]:
    with path.open("rb", buffering=0) as file:
        return [
            class_text(os.pread(file.fileno(), min(size, MAX_BYTES + 1), offset)) if offset >= 0 else None
            for offset, size in zip(offsets.tolist(), sizes.tolist())
        ]


def _places(batch: list[Sample], path: Path) -> tuple[list[str], dict[str, np.ndarray]]:
    """Keys, and for each extension an int64 (2, n): offsets and sizes, -1 where missing."""
    extensions: set[str] = set().union(*(group for _, group in batch))
    if len(extensions) > MAX_EXTENSIONS:
        raise UserError(
            f"{path}: {len(extensions)} different extensions, such as .{min(extensions)}; a key ends at the first "
            "dot of the file name, so replace dots inside names (`vergence shards pack` does)"
        )
    missing = (-1, -1)
    places = {
        extension: np.array([group.get(extension, missing) for _, group in batch], np.int64).T.copy()
        for extension in sorted(extensions)
    }
    return [key for key, _ in batch], places


def _table(chunks: list[Chunk]) -> pa.Table:
    """The chunks one below the other; null where one lacks a column."""
    types = {"shard": pa.int32(), "key": pa.string()} | dict[str, pa.DataType]()
    for chunk in chunks:
        types |= {name: values.type for name, values in chunk.items() if name not in types}
    columns = {
        name: pa.chunked_array([chunk.get(name, pa.nulls(len(chunk["key"]), kind)) for chunk in chunks], kind)
        for name, kind in types.items()
    }
    return pa.table(columns)


def _labelled(table: pa.Table) -> tuple[pa.Table, list[str] | None, str | None]:
    """The table with numbers for the words in its column `label`, their names, and what is mixed.

    The column is dropped if no sample has a class.
    """
    if "label" not in table.column_names:
        return table, None, None
    if table["label"].null_count == len(table):
        return table.drop_columns("label"), None, None
    classes = number(table["label"].unify_dictionaries().combine_chunks())
    place = table.schema.get_field_index("label")
    labels = pa.array(classes.labels, mask=classes.labels < 0)
    return table.set_column(place, "label", labels), classes.names, classes.mixed


def _second_images(
    table: pa.Table, counts: Mapping[str, int], used: Sequence[Object], lost: dict[str, LeftOut]
) -> LeftOut:
    """Images beside the one of their sample: those of named views are returned, the others added to `lost`.

    A named view (`seg.png`, or a .png beside every .jpg) is one that at least half of the samples have; a name that
    begins with a digit is the rest of a file name with dots, and so are more names than there are samples.
    """
    chosen = image_extensions(counts)
    images = [*chosen, *sorted(set(filter(is_image, counts)) - set(chosen))]
    views, taken = LeftOut(), np.zeros(len(table), bool)
    for extension in images:
        there = _has(table, extension)
        second = np.flatnonzero(there & taken if extension in chosen else there)
        taken |= there
        in_most = 2 * counts[extension] >= len(table) and len(images) <= len(table)
        if in_most and not extension[0].isdigit() and len(second):
            views.add(f".{extension}", count=len(second))
            continue
        for shard, key in zip(table["shard"].take(second).to_pylist(), table["key"].take(second).to_pylist()):
            lost.setdefault(used[shard].url, LeftOut()).add(SECOND, f"{key}.{extension}")
    return views


def _has(table: pa.Table, extension: str) -> np.ndarray:
    return np.asarray(table[f"{extension}.offset"].is_valid())


def _notes(scanned: Scanned, counts: Mapping[str, int], num_shards: int) -> list[str]:
    """A line each for what is in the shards and is not used."""
    table, notes, lost, skipped = scanned.table, list[str](), LeftOut(), LeftOut()
    for shard in scanned.without_images:
        skipped.add(f"without images, of {num_shards:,}", name_of(shard))
    for outside in scanned.lost.values():
        lost.merge(outside)
    has_images = bool(image_extensions(counts))
    notes += skipped.lines("shards skipped") if has_images else []
    notes += lost.lines("images that end in no sample")
    notes += scanned.views.lines("images of other views, not used")
    has_image = np.zeros(len(table), bool)
    for extension in image_extensions(counts):
        has_image |= _has(table, extension)
    without_class = table["label"].null_count if "label" in table.column_names else 0
    without_image = int((~has_image).sum()) if has_images else 0
    if without_image:
        notes.append(f"{without_image:,} of {len(table):,} samples have no image")
    if without_class:
        notes.append(f"{without_class:,} of {len(table):,} samples have no class (.cls)")
    if without_image or without_class:
        apart = len(table) - len(table.group_by(["shard", "key"]).aggregate([]))
        if apart:
            notes.append(
                f"{apart:,} keys come back later in their shard: tar --sort=name keeps a sample together"
            )
    return notes + ([scanned.mixed] if scanned.mixed else [])
