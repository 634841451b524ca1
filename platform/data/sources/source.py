"""What every kind of source gives to `shards pack`: keys in a fixed order, and the samples of any range."""

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

from vergence.platform.errors import UserError
from vergence.platform.text import printable

NO_LABEL = "none"  # as a choice of the user


class Packed(NamedTuple):
    """One sample as it goes into a shard."""

    key: str
    extension: str
    data: bytes
    label: int | None


class Source(Protocol):
    """num: samples.  fingerprint: changes when the source does.  classes: names by label, where known.

    notes: a line each for what was given and is not used.
    """

    num: int
    fingerprint: str
    classes: list[str] | None
    notes: list[str]

    def samples(self, start: int, stop: int) -> Iterator[Packed]: ...


def unique_keys(names: Sequence[str]) -> list[str]:
    """Keys from relative paths: dots become `_`, a repeated key gets -2, -3, ...; one line, and UTF-8.

    Leading `__` become `_`: webdataset keeps names like __this__ for its own notes.
    """
    keys, used, numbers = [], set[str](), dict[str, int]()
    for name in names:
        stem = key = re.sub("^__+", "_", printable(name).replace(".", "_"))
        number = numbers.get(stem, 1)  # all below are taken: names that are all the same cost linear time
        while key in used:
            number += 1
            key = f"{stem}-{number}"
        numbers[stem] = number
        used.add(key)
        keys.append(key)
    return keys


def numbered(names: Sequence[str], known_classes: Sequence[str] | None) -> list[str]:
    """Class names in the order of their numbers: sorted, or as in `known_classes` if that has them all.

    So a test set that lacks a class keeps the labels of its training set.
    """
    own = sorted(set(names))
    return list(known_classes) if known_classes and set(own) <= set(known_classes) else own


def only_none(label: str | None, src: str, classes: str) -> bool:
    """Whether classes are wanted, where there is nothing to choose from but `none`. Raises UserError."""
    if label not in (None, NO_LABEL):
        raise UserError(f"--label {label}: {src} has no columns; {classes}, and --label none leaves it out")
    return label is None


def digest(files: Sequence[tuple[str, int]], more: Any) -> str:
    return hashlib.sha256(json.dumps([files, more]).encode()).hexdigest()
