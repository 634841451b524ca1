"""Packs images into webdataset shards: OUT/NAME-000000.tar ..., classes.json and NAME.pack.json beside.

Image bytes are copied as they are. A shard is written elsewhere and put in its place when it is complete, so a shard
that exists is whole, and a second run writes only those that are missing.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from webdataset import TarWriter

from vergence.platform.data.progress import Bar
from vergence.platform.data.sources.open import open_source
from vergence.platform.data.sources.source import Source
from vergence.platform.data.target import Target, open_target
from vergence.platform.errors import UserError

CLASSES = "classes.json"


@dataclass(frozen=True)
class Pack:
    """What is there when `pack` returns."""

    shards: list[str]  # paths or URLs
    num_samples: int
    num_written: int  # shards written by this call; 0: all were there already
    classes: list[str] | None
    notes: list[str]  # a line each for what was given and is not used


def pack(
    src: str | Path,
    out: str | Path,
    name: str = "train",
    per_shard: int = 5000,
    size: int | None = None,
    label: str | None = None,
    progress: bool = False,
) -> Pack:
    """Pack a source into shards, or go on where an interrupted call stopped.

    Args:
        src: see `open_source`.
        out: folder of the shards, or its URL in a store; there each gets a file beside it that says what it holds.
        name: their name; several packs (train, test) share a folder and its classes.json.
        per_shard: samples a shard, the last one has the rest.
        size: pixels of a side, for sources that have no image files.
        label: the column of classes of parquet files, or `none` for no classes.
        progress: draw a bar on stderr.
    Returns: Pack. The same source gives the same bytes, on every machine.
    Raises UserError: no images, or OUT holds shards of this name from another source or with other classes.
    """
    if not re.fullmatch(r"[\w.-]+", name) or per_shard < 1:
        raise UserError(f"--name {name} --per-shard {per_shard}: letters, digits, - and _; at least 1 sample")
    target = open_target(out)
    source = open_source(str(src), size, label, target.read(CLASSES))
    files = [f"{name}-{i:06d}.tar" for i in range(-(-source.num // per_shard))]
    with target.only_writer(name):
        there = target.shards(name)
        manifest = {"per_shard": per_shard, "samples": source.num, "source": source.fingerprint}
        _claim(target, name, source, manifest, bool(there))
        missing = [i for i, file in enumerate(files) if file not in there]
        with Bar(f"packing {name}", source.num, enabled=progress) as advance:
            advance((len(files) - len(missing)) * per_shard)
            for i in missing:
                with target.shard(files[i]) as path:
                    _write(path, source, i * per_shard, min((i + 1) * per_shard, source.num), advance)
    shards = [f"{target.where}/{file}" for file in files]
    return Pack(shards, source.num, len(missing), source.classes, source.notes)


def _claim(target: Target, name: str, source: Source, manifest: dict[str, Any], has_shards: bool) -> None:
    """Note what is packed here, or find that it is something else."""
    known, classes = target.read(f"{name}.pack.json"), target.read(CLASSES)
    if known is None and has_shards:
        raise UserError(
            f"{target.where}: holds {name}-*.tar that were not packed by this command; choose another --name"
        )
    if known is not None:
        _refuse_other(target, name, manifest, known)
    if source.classes is not None:
        _refuse_classes(target, name, source.classes, classes or target.write_new(CLASSES, source.classes))
    if known is None:
        _refuse_other(target, name, manifest, target.write_new(f"{name}.pack.json", manifest))


def _refuse_other(target: Target, name: str, manifest: dict[str, Any], known: dict[str, Any]) -> None:
    if known != manifest:
        differing = [key for key in manifest if known.get(key) != manifest[key]]
        raise UserError(
            f"{target.where}/{name}.pack.json: {name} was packed from something else (other {', '.join(differing)}); "
            f"choose another --name or folder, or delete {name}-*.tar and {name}.pack.json"
        )


def _refuse_classes(target: Target, name: str, classes: list[str], known: list[str]) -> None:
    if known != classes:
        raise UserError(
            f"{target.where}/{CLASSES}: other classes than {name}'s ({len(known)} there, {len(classes)} here), so "
            "their labels would mean different things; pack into another folder"
        )


def _write(path: Path, source: Source, start: int, stop: int, advance: Callable[[int], None]) -> None:
    # pax only where ustar is too narrow (long names); no dates: the same source, the same bytes
    with path.open("wb") as file, TarWriter(file, encoder=False, mtime=0, format="PAX_FORMAT") as writer:
        for sample in source.samples(start, stop):
            members = {"__key__": sample.key, sample.extension: sample.data}
            if sample.label is not None:
                members["cls"] = str(sample.label).encode()
            writer.write(members)
            advance(1)
