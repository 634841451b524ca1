"""Packs images into webdataset shards: OUT/NAME-000000.tar ..., classes.json and NAME.pack.json beside.

Image bytes are copied as they are. A shard is written under another name and renamed when it is complete
and on disk, so a shard that exists is whole, and a second run writes only those that are missing.
"""

import fcntl
import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from webdataset import TarWriter

from vergence.platform.data.progress import Bar
from vergence.platform.data.sources.open import open_source
from vergence.platform.data.sources.source import Source
from vergence.platform.errors import UserError


@dataclass(frozen=True)
class Pack:
    """What is there when `pack` returns."""

    shards: list[Path]
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
        out: folder of the shards.
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
    out = Path(out).expanduser()
    source = open_source(str(src), size, label, _read_json(out / "classes.json"))
    shards = [out / f"{name}-{i:06d}.tar" for i in range(-(-source.num // per_shard))]
    out.mkdir(parents=True, exist_ok=True)
    with _only_writer(out / f".{name}.lock"):
        _claim(
            out, name, source, {"per_shard": per_shard, "samples": source.num, "source": source.fingerprint}
        )
        missing = [i for i, shard in enumerate(shards) if not shard.exists()]
        with Bar(f"packing {name}", source.num, enabled=progress) as advance:
            advance((len(shards) - len(missing)) * per_shard)
            for i in missing:
                _write(shards[i], source, i * per_shard, min((i + 1) * per_shard, source.num), advance)
    return Pack(shards, source.num, len(missing), source.classes, source.notes)


def _claim(out: Path, name: str, source: Source, manifest: dict[str, Any]) -> None:
    """Note what is packed here, or find that it is something else."""
    path, classes_path = out / f"{name}.pack.json", out / "classes.json"
    known = _read_json(path)
    if known is None and any(out.glob(f"{name}-[0-9]*.tar")):
        raise UserError(
            f"{out}: holds {name}-*.tar that were not packed by this command; choose another --name"
        )
    if known is not None and known != manifest:
        differing = [key for key in manifest if known.get(key) != manifest[key]]
        raise UserError(
            f"{path}: {name} was packed from something else (other {', '.join(differing)}); choose another --name "
            f"or folder, or delete {name}-*.tar and {path.name}"
        )
    classes = _read_json(classes_path)
    if source.classes is not None and classes not in (None, source.classes):
        raise UserError(
            f"{classes_path}: other classes than {name}'s ({len(classes)} there, {len(source.classes)} here), so "
            "their labels would mean different things; pack into another folder"
        )
    if source.classes is not None and classes is None:
        _write_json(classes_path, source.classes)
    if known is None:
        _write_json(path, manifest)


def _write(path: Path, source: Source, start: int, stop: int, advance: Callable[[int], None]) -> None:
    temporary = path.with_name(f".{path.name}.part")
    try:
        with temporary.open("wb") as file:
            # pax only where ustar is too narrow (long names); no dates: the same source, the same bytes
            with TarWriter(file, encoder=False, mtime=0, format="PAX_FORMAT") as writer:
                for sample in source.samples(start, stop):
                    members = {"__key__": sample.key, sample.extension: sample.data}
                    if sample.label is not None:
                        members["cls"] = str(sample.label).encode()
                    writer.write(members)
                    advance(1)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def _only_writer(path: Path) -> Iterator[None]:
    """Two packs of the same name would write the same files."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{path.parent}: another `shards pack` is writing here; wait for it") from None
        yield


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text()) if path.exists() else None
    except ValueError:
        raise UserError(f"{path}: damaged, not JSON; delete it and pack into another folder") from None


def _write_json(path: Path, value: Any) -> None:
    temporary = path.with_name(f".{path.name}.part")
    temporary.write_text(json.dumps(value, indent=1) + "\n")
    os.replace(temporary, path)
