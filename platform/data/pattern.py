"""Which files a pattern names: literally as far as it exists, then {a,b} and {00..09}, then *, ?, [...] and **."""

import glob
import os
from pathlib import Path
from typing import NamedTuple

import braceexpand

from vergence.platform.data.formats import IMAGE_EXTENSIONS
from vergence.platform.data.walk import LeftOut, few, folders
from vergence.platform.errors import UserError

_COMPRESSED_NAMES = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")


class Shards(NamedTuple):
    paths: list[Path]
    notes: list[str]  # a line each for what the pattern names too and is not used


def expand(pattern: str | Path) -> Shards:
    """The shards that a tar, a folder of tars, a glob or a brace range `{000000..000009}` names.

    Absolute, sorted by path and each file once: so the ids do not depend on how the same shards are written.
    Raises UserError naming the part that matches nothing, or links to nothing.
    """
    text, found, notes = os.fspath(pattern), list[Path](), list[str]()
    matches = match(text)
    missing = [part for part, names in matches.items() if not names]
    if missing:
        count = f"{len(missing):,} of {len(matches):,}: " if len(missing) > 1 else ""
        where = f" ({count}{few(missing)} does not exist)" if len(matches) > 1 else ""
        raise UserError(f"{pattern}: matches no shard{where}; relative paths start at {os.getcwd()}")
    for part, names in matches.items():
        if names == [part] and os.path.isdir(part):
            files, left_out = _tars(text, part)
        else:
            files, left_out = [name for name in names if not os.path.isdir(name)], LeftOut()
            for name in names:
                if os.path.isdir(name):
                    left_out.add("folders that match", name)
        if not files:
            raise UserError(
                f"{pattern}: matches no file, only {names[0]}; give a folder of tars, or FOLDER/*.tar"
            )
        found += [Path(name).absolute() for name in files]
        notes += [f"{part}: {line}" for line in left_out.lines()]
    shards, repeated = _once(sorted(set(found)), text)
    return Shards(shards, [*notes, *(f"{pattern}: {line}" for line in repeated.lines())])


def _tars(pattern: str, folder: str) -> tuple[list[str], LeftOut]:
    """The tars directly in a folder, and what else there could have been meant."""
    tars, compressed, left_out = list[str](), list[str](), LeftOut()
    for name in sorted(os.listdir(folder)):
        path, ending = os.path.join(folder, name), name.lower()
        if name.startswith("."):
            continue
        if os.path.isdir(path):
            for below in sorted(glob.glob(f"{glob.escape(path)}/*.tar")):
                left_out.add(
                    "tars in folders below (FOLDER/**/*.tar takes them)", os.path.relpath(below, folder)
                )
        elif ending.endswith(".tar"):
            tars.append(path)
        elif ending.endswith(_COMPRESSED_NAMES):
            compressed.append(path)
            left_out.add("compressed tars", name)
        elif ending.rpartition(".")[2] in IMAGE_EXTENSIONS:
            left_out.add("images beside the tars", name)
    if not tars and not compressed:
        lines = "".join(f"; {line}" for line in left_out.lines())
        raise UserError(
            f"{pattern}: the folder holds no .tar; pack images with `vergence shards pack`{lines}"
        )
    return tars or compressed[:1], left_out  # what is compressed gets its own message, from the scan


def _once(paths: list[Path], pattern: str) -> tuple[list[Path], LeftOut]:
    """Each real file once, by its own name if there is one; the others are counted. Raises UserError: dead links."""
    dead = [path.name for path in paths if not path.exists()]
    if dead:
        raise UserError(
            f"{pattern}: {len(dead)} of {len(paths)} shards are links to nothing ({few(dead)}); mend or remove them"
        )
    seen, kept, repeated = set[tuple[int, int]](), list[Path](), LeftOut()
    for path in sorted(paths, key=lambda path: (path.is_symlink(), path)):
        status = path.stat()
        if (status.st_dev, status.st_ino) in seen:
            repeated.add("links to a shard that is taken", path.name)
        else:
            seen.add((status.st_dev, status.st_ino))
            kept.append(path)
    return sorted(kept), repeated


def match(pattern: str) -> dict[str, list[str]]:
    """The files and folders that each alternative of a pattern names, sorted; an alternative may name none.

    A folder called `shards [v1]` is that folder. `**` as a whole part of the path stands for any number of folders.
    Raises UserError: an open brace, or `**` within a name.
    """
    text = os.path.expanduser(pattern)
    if os.path.lexists(text):
        return {text: [text]}
    literal, rest = _existing(text)
    try:
        alternatives = list(braceexpand.braceexpand(rest))
    except ValueError:
        raise UserError(f"{pattern}: a brace is not closed; a range is {{000000..000009}}") from None
    if any("**" in part and part != "**" for part in "/".join(alternatives).split("/")):
        raise UserError(f"{pattern}: ** stands alone between slashes, as in FOLDER/**/*.tar")
    return {literal + rest: _below(literal, rest.split("/")) for rest in alternatives}


def _existing(text: str) -> tuple[str, str]:
    """The longest beginning, up to a slash, that exists; and the rest."""
    literal, rest = "", text
    while "/" in rest:
        part, _, after = rest.partition("/")
        if not os.path.lexists(f"{literal}{part}/"):
            break
        literal, rest = f"{literal}{part}/", after
    return literal, rest


def _below(base: str, parts: list[str]) -> list[str]:
    """Paths that `parts` name below `base`, which is empty or ends in a slash."""
    part, *others = parts
    if part == "**":
        bases = folders(base)
    elif os.path.lexists(base + part):
        bases = [f"{base}{part}/"]
    else:
        bases = [f"{name}/" for name in sorted(glob.glob(glob.escape(base) + part))]
    if not others:
        return [name[:-1] for name in bases]
    return [name for below in bases if os.path.isdir(below) for name in _below(below, others)]
