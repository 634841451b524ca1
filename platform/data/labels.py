"""Classes: what stands in the .cls members of a set, as numbers and names."""

import json
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from vergence.platform.errors import UserError
from vergence.platform.store import NotThere, is_url, store_of
from vergence.platform.text import printable

MAX_BYTES = 200  # of a .cls that can be a class


class Classes(NamedTuple):
    """The classes of a set of samples.

    labels: (n,) int64, -1 for a sample without a class.  names: by number, where the classes are words.
    mixed: a line about numbers that were taken for words, or None.
    """

    labels: np.ndarray
    names: list[str] | None
    mixed: str | None


@lru_cache(maxsize=1 << 16)
def class_text(data: bytes | None) -> str | None:
    """The class in a .cls member, as it is written; None if there is none: see `why_no_class`."""
    return None if data is None or why_no_class(data) else _text(data)


def why_no_class(data: bytes | None) -> str | None:
    """Why a .cls member is no class, or None: it must be one line, not empty, and a number at least 0."""
    if data is None:
        return "no class (.cls)"
    text = _text(data)
    if not text:
        return "the class (.cls) is empty"
    if len(data) > MAX_BYTES or printable(text) != text:
        return f"the class (.cls) is not one line of at most {MAX_BYTES} bytes: {printable(text)[:40]}"
    if text[0] == "-" and text[1:].isascii() and text[1:].isdigit():
        return f"the class (.cls) is {text[:40]}, below 0"
    return None


def number(texts: pa.DictionaryArray) -> Classes:
    """Number the classes of a set: whole numbers stand for themselves; if one is a word, all are words.

    Words are numbered in sorted order over the whole set.
    """
    words: list[str] = texts.dictionary.to_pylist()
    numeric = [word.isascii() and word.isdigit() and len(word) < 19 for word in words]
    names = None if all(numeric) else sorted(words)
    places = {} if names is None else {name: i for i, name in enumerate(names)}
    numbers = np.array([int(word) if names is None else places[word] for word in words] + [-1], np.int64)
    rows = texts.indices.fill_null(len(words)).to_numpy(zero_copy_only=False)
    mixed = _mixed(words, np.array(numeric, bool), rows) if names is not None and any(numeric) else None
    return Classes(numbers[rows], names, mixed)


def _mixed(words: Sequence[str], numeric: np.ndarray, rows: np.ndarray) -> str:
    is_number = np.append(numeric, False)[rows]
    as_number, as_word = int(is_number.sum()), int((rows < len(words)).sum() - is_number.sum())
    a_number, a_word = words[int(np.argmax(numeric))], words[int(np.argmin(numeric))]
    return (
        f"classes: {as_number:,} are numbers ({a_number}, ...) and {as_word:,} are words ({a_word}, ...), so all are "
        "taken for words"
    )


def read_names(folders: Iterable[str]) -> list[str] | None:
    """The class names in the classes.json of some folders, by path or URL; None unless all have one.

    Raises UserError: they differ, so that the labels of one folder mean something else in another.
    """
    found = {folder: _names(f"{folder}/classes.json") for folder in folders}
    known = {folder: names for folder, names in found.items() if names is not None}
    first = next(iter(known), None)
    for folder, names in known.items():
        if first is not None and names != known[first]:
            raise UserError(
                f"{folder}/classes.json names other classes than {first}/classes.json, so the labels of these shards "
                "mean different things; use them one by one, or pack them into one folder"
            )
    return known[first] if first is not None and len(known) == len(found) else None


def _names(path: str) -> list[str] | None:
    """None as well for a file of another program: no list of names."""
    try:
        names = json.loads(store_of(path).get(path)[0] if is_url(path) else Path(path).read_bytes())
    except (FileNotFoundError, NotThere, UserError):  # who may not list is refused what is not there
        return None
    except ValueError:
        raise UserError(
            f"{path}: damaged, not JSON; write the names of the classes again, or delete it"
        ) from None
    return names if isinstance(names, list) and all(isinstance(name, str) for name in names) else None


def by_name(
    labels: np.ndarray, names: Sequence[str], wanted: Sequence[str]
) -> tuple[np.ndarray, dict[str, int]]:
    """Renumber labels, (n,) int64 into `names`, by the places of their names in `wanted`.

    Returns the labels, and how many samples have a class that `wanted` lacks (theirs is -1).
    """
    places = {name: i for i, name in enumerate(wanted)}
    renumbered = np.array([places.get(name, -1) for name in names], np.int64)[labels]
    used, counts = np.unique(labels[renumbered < 0], return_counts=True)
    return renumbered, {names[label]: int(count) for label, count in zip(used, counts)}


def _text(data: bytes) -> str:
    return data.decode("utf-8-sig", "backslashreplace").strip()
