"""Which shards a pattern names: tars on this machine, or in a store."""

import glob
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatchcase
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

from vergence.platform.data.formats import IMAGE_EXTENSIONS
from vergence.platform.data.pattern import alternatives, match
from vergence.platform.data.walk import LeftOut, few
from vergence.platform.errors import UserError
from vergence.platform.masking import masked
from vergence.platform.store import AT_ONCE, NotThere, Object, folder_of, is_url, store_of

SIDE = ".idx"  # the ending of the file beside a shard that says what the shard holds
_COMPRESSED_NAMES = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")


class Shards(NamedTuple):
    """found: a local shard is its absolute path, its size in bytes and the time of its last change in ns."""

    found: list[Object]
    notes: list[str]  # a line each for what the pattern names too and is not used


def expand(pattern: str | Path) -> Shards:
    """The shards that a tar, a folder of tars, a glob or a brace range `{000000..000009}` names.

    Absolute, sorted by path or URL and each file once: so the ids do not depend on how the same shards are written.
    Raises UserError naming the part that matches nothing, or links to nothing; or the store refuses.
    """
    text = os.fspath(pattern)
    return _objects(text) if is_url(text) else _files(text)


def _files(pattern: str) -> Shards:
    found, notes, matches = list[Path](), list[str](), match(pattern)
    _refuse_missing(
        pattern,
        matches,
        [part for part, names in matches.items() if not names],
        f"; relative paths start at {os.getcwd()}",
    )
    for part, names in matches.items():
        if names == [part] and os.path.isdir(part):
            tars, left_out = _tars(pattern, _names(part))
            files = [os.path.join(part, name) for name in tars]
        else:
            files, left_out = [], LeftOut()
            for name in names:
                if os.path.isdir(name):
                    left_out.add("folders that match", name)
                elif not name.endswith(SIDE):
                    files.append(name)
        if not files:
            raise UserError(
                f"{pattern}: matches no file, only {names[0]}; give a folder of tars, or FOLDER/*.tar"
            )
        found += [Path(name).absolute() for name in files]
        notes += [f"{part}: {line}" for line in left_out.lines()]
    shards, repeated = _once(sorted(set(found)), pattern)
    return Shards(shards, [*notes, *(f"{pattern}: {line}" for line in repeated.lines())])


def _refuse_missing(pattern: str, parts: Iterable[str], missing: Sequence[str], hint: str = "") -> None:
    if missing:
        num = len(list(parts))
        count = f"{len(missing):,} of {num:,}: " if len(missing) > 1 else ""
        where = f" ({count}{few(missing)} does not exist)" if num > 1 else ""
        raise UserError(f"{pattern}: matches no shard{where}{hint}")


def _names(folder: str) -> Iterator[str]:
    """The files directly in a folder, and the tars of the folders in it."""
    for name in sorted(os.listdir(folder)):
        path = os.path.join(folder, name)
        if os.path.isdir(path):
            yield from (f"{name}/{tar}" for tar in sorted(glob.glob("*.tar", root_dir=path)))
        else:
            yield name


def _tars(pattern: str, names: Iterable[str]) -> tuple[list[str], LeftOut]:
    """Of names in and below a folder, the tars directly in it, and what else there could have been meant."""
    tars, compressed, left_out = list[str](), list[str](), LeftOut()
    for name in names:
        ending = name.lower()
        if name.startswith("."):
            continue
        if "/" in name:
            if name.endswith(".tar"):
                left_out.add("tars in folders below (FOLDER/**/*.tar takes them)", name)
        elif ending.endswith(".tar"):
            tars.append(name)
        elif ending.endswith(_COMPRESSED_NAMES):
            compressed.append(name)
            left_out.add("compressed tars", name)
        elif ending.rpartition(".")[2] in IMAGE_EXTENSIONS:
            left_out.add("images beside the tars", name)
    if not tars and not compressed:
        lines = "".join(f"; {line}" for line in left_out.lines())
        raise UserError(
            f"{pattern}: the folder holds no .tar; pack images with `vergence shards pack`{lines}"
        )
    return tars or compressed[:1], left_out  # what is compressed gets its own message, from the scan


def _once(paths: list[Path], pattern: str) -> tuple[list[Object], LeftOut]:
    """Each real file once, by its own name if there is one; the others are counted. Raises UserError: dead links."""
    dead = [path.name for path in paths if not path.exists()]
    if dead:
        raise UserError(
            f"{pattern}: {len(dead)} of {len(paths)} shards are links to nothing ({few(dead)}); mend or remove them"
        )
    seen, kept, repeated = set[tuple[int, int]](), list[tuple[Path, Object]](), LeftOut()
    for path in sorted(paths, key=lambda path: (path.is_symlink(), path)):
        status = path.stat()
        if (status.st_dev, status.st_ino) in seen:
            repeated.add("links to a shard that is taken", path.name)
        else:
            seen.add((status.st_dev, status.st_ino))
            kept.append((path, Object(str(path), status.st_size, str(status.st_mtime_ns))))
    return [shard for _, shard in sorted(kept)], repeated


def _objects(pattern: str) -> Shards:
    if pattern.startswith("http") and ("?" in pattern or "@" in pattern.split("/")[2]):
        raise UserError(
            f"{masked(pattern)}: signed URLs and passwords are not taken, for a recipe holds no secret; for a closed bucket "
            "use s3://, gs:// or az:// (docs/stores.md)"
        )
    parts = list(dict.fromkeys(part.rstrip("/") for part in alternatives(pattern)))
    named = [part for part in parts if _is_object(part)]
    found, notes = _named(named), list[str]()
    missing = [part for part in named if part not in found]
    for part in parts:
        if part in named:
            continue
        objects, left_out = _globbed(part) if glob.has_magic(part) else _in_folder(pattern, part)
        missing += [] if objects else [part]
        found |= {each.url: each for each in objects}
        notes += [f"{part}: {line}" for line in left_out.lines()]
    _refuse_missing(pattern, parts, missing)
    return Shards(sorted(found.values(), key=lambda each: _as_path(each.url)), notes)


def _as_path(url: str) -> list[str]:
    """What sorts objects as the same files in folders."""
    return (unquote(url) if url.startswith("http") else url).split("/")


def _is_object(url: str) -> bool:
    return not glob.has_magic(url) and url.lower().endswith((".tar", *_COMPRESSED_NAMES))


def _named(urls: Sequence[str]) -> dict[str, Object]:
    """Those of some objects that are there: asked for one by one if they are few, else their folders are listed."""
    if len(urls) > AT_ONCE and not urls[0].startswith("http"):
        folders = sorted({folder_of(url) for url in urls})
        listed = {each.url: each for folder in folders for each in store_of(folder).list(folder)}
        return {url: listed[url] for url in urls if url in listed}
    with ThreadPoolExecutor(AT_ONCE, "stat") as threads:
        return {each.url: each for each in threads.map(_stat, urls) if each is not None}


def _stat(url: str) -> Object | None:
    try:
        return store_of(url).stat(url)
    except NotThere:
        return None


def _in_folder(pattern: str, folder: str) -> tuple[list[Object], LeftOut]:
    listed = {each.url.removeprefix(f"{folder}/"): each for each in store_of(folder).list(folder)}
    if not listed:  # the name of no folder, but perhaps of an object
        alone = _stat(folder) if folder_of(folder).count("/") > 1 else None
        return [alone] if alone else [], LeftOut()
    tars, left_out = _tars(pattern, sorted(listed))
    return [listed[name] for name in tars], left_out


def _globbed(url: str) -> tuple[list[Object], LeftOut]:
    parts = url.split("/")
    literal = [*takewhile(lambda part: not glob.has_magic(part), parts[3:])]
    folder, rest = "/".join([*parts[:3], *literal]), parts[3 + len(literal) :]
    objects = [
        each
        for each in store_of(folder).list(folder)
        if _fits(each.url.removeprefix(f"{folder}/").split("/"), rest) and not each.url.endswith(SIDE)
    ]
    return objects, LeftOut()


def _fits(names: list[str], parts: list[str]) -> bool:
    """Whether the parts of a path fit those of a glob, where hidden names fit no wildcard."""
    if not parts or not names:
        return not parts and not names
    if parts[0] == "**":
        return _fits(names, parts[1:]) or (not names[0].startswith(".") and _fits(names[1:], parts))
    hidden = names[0].startswith(".") and not parts[0].startswith(".")
    return fnmatchcase(names[0], parts[0]) and not hidden and _fits(names[1:], parts[1:])
