"""What a set of shards holds: samples, classes, and every image that ends in none of them."""

import hashlib
import json
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from vergence.platform.data.contents import Chunk, Contents, read_contents
from vergence.platform.data.formats import IMAGE_EXTENSIONS, is_image
from vergence.platform.data.labels import number
from vergence.platform.data.progress import Bar
from vergence.platform.data.stored import Stored
from vergence.platform.data.tar import DamagedShard
from vergence.platform.data.walk import LeftOut
from vergence.platform.store import Object, is_url, name_of

VERSION = 4  # of the index: its columns, and what its metadata hold
SECOND = "second images of a key, which ends at the first dot of a file name (`vergence shards pack` replaces dots)"


class Scanned(NamedTuple):
    """What was found.

    table: the index's columns; in its metadata digest, shards, extensions, class names and notes.
    By path or URL: damaged: shards that cannot be read, and why.  without_images: those that can be and hold none; they are
    left out, unless no shard has any.
    lost: images that end in no sample, by shard.  views: those of named views, beside the image of their sample.
    mixed: a line about classes of two kinds.  said: what was done to know all this, in a line or none.
    """

    table: pa.Table
    damaged: dict[str, str]
    without_images: dict[str, str]
    lost: dict[str, LeftOut]
    views: LeftOut
    mixed: str | None
    said: list[str]


def scan(shards: Sequence[Object], progress: bool = False, cache: Path | None = None) -> Scanned:
    """Read the headers of all shards, and the .cls members.

    cache: of indexes; keeps what shards of a store hold. Without one, these are refused.
    """
    pictures, others = _Found(), _Found()  # of shards with images, and of those without
    damaged, without_images, lost = dict[str, str](), dict[str, str](), dict[str, LeftOut]()
    stored = Stored(cache, progress) if cache and shards and is_url(shards[0].url) else None
    found = stored.contents(shards) if stored else _local(shards, progress)
    for shard, contents in zip(shards, found, strict=True):
        if isinstance(contents, DamagedShard):
            damaged[shard.url] = str(contents).removeprefix(f"{shard.url}: ")
            continue
        kinds = contents.extensions
        if image_extensions(kinds):
            pictures.add(shard, contents)
        else:
            others.add(shard, contents)
            kept = f"only .{', .'.join(sorted(kinds))}" if kinds else "no files"
            without_images[shard.url] = (
                f"the tar holds no images ({kept}); an image is KEY.jpg, .png, .webp, ..."
            )
        if contents.lost.counts:
            lost[shard.url] = contents.lost
    chosen = pictures if pictures.shards else others
    used = chosen.shards
    table, classes, mixed = _labelled(_table(chosen.chunks))
    counts = {
        name[:-5]: len(table) - table[name].null_count
        for name in table.column_names
        if name.endswith(".size")
    }
    views = _second_images(table, counts, used, lost)
    scanned = Scanned(table, damaged, without_images, lost, views, mixed, stored.said if stored else [])
    about = {
        "schema": VERSION,
        "digest": chosen.sha256.hexdigest(),
        "shards": used,
        "extensions": counts,
        "classes": classes,
        "notes": _notes(scanned, counts, len(shards)),
    }
    return scanned._replace(table=table.replace_schema_metadata({"vergence": json.dumps(about)}))


def _local(shards: Sequence[Object], progress: bool) -> Iterator[Contents | DamagedShard]:
    with Bar("scanning shards", len(shards), enabled=progress) as advance:
        for shard in shards:
            try:
                with open(shard.url, "rb", buffering=1 << 16) as file:
                    yield read_contents(file, os.fstat(file.fileno()).st_size, shard.url)
            except DamagedShard as damage:
                yield damage
            advance(1)


class _Found:
    """The samples of some shards, in order."""

    def __init__(self) -> None:
        self.sha256, self.shards, self.chunks = hashlib.sha256(), list[Object](), list[Chunk]()

    def add(self, shard: Object, contents: Contents) -> None:
        contents.digest(name_of(shard.url), self.sha256)
        for chunk in contents.chunks:
            number = np.full(len(chunk["key"]), len(self.shards), np.int32)
            self.chunks.append({"shard": pa.array(number)} | chunk)
        self.shards.append(shard)


def image_extensions(extensions: Collection[str]) -> list[str]:
    """Those of images, best first; `seg.png` counts only where no plain one exists (then only the first)."""
    plain = [extension for extension in IMAGE_EXTENSIONS if extension in extensions]
    return plain or sorted(filter(is_image, extensions))[:1]


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
