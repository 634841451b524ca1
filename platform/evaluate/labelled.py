"""Labelled samples: whose classes are known, and which classes of two sets are the same."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vergence.platform.data.index import Index, open_index
from vergence.platform.data.labels import by_name, read_names
from vergence.platform.errors import UserError
from vergence.platform.store import folder_of

SHOWN = 3  # classes in a message


@dataclass(frozen=True)
class Labelled:
    """The samples of a set of shards that have a class, before any image is read."""

    pattern: str
    index: Index
    ids: NDArray[np.int64]  # (n,)
    labels: NDArray[np.int64]  # (n,), numbers of classes
    names: list[str] | None  # of the classes, by label


class Pair(NamedTuple):
    """Two sets whose labels mean the same, or a test set that is told by names alone.

    compared: how, in words.  apart: a line about classes that only the bank has, or None.
    """

    bank: Labelled | None
    test: Labelled
    compared: str
    apart: str | None

    @property
    def numbering(self) -> Labelled:
        """The set whose numbers both have."""
        return self.bank or self.test


def open_labelled(pattern: str, cache: Path) -> Labelled:
    """The labelled samples of these shards; `cache`: of indexes.

    Raises UserError: no sample has a class, or one has a number that classes.json does not name.
    """
    index = open_index(pattern, cache, progress=True)
    ids = np.arange(len(index), dtype=np.int64)
    labels = index.labels(ids)
    if labels is None:
        raise UserError(
            f"{pattern}: these shards have no labels (KEY.cls), and an encoder is measured against labels"
        )
    ids, labels = ids[labels >= 0], labels[labels >= 0]
    names = index.classes or read_names({folder_of(shard) for shard in index.shards})
    if names is not None and labels.max() >= len(names):
        raise UserError(f"{pattern}: holds class {labels.max()}, its classes.json names {len(names)} classes")
    return Labelled(pattern, index, ids, labels, names)


def in_one_numbering(bank: Labelled, test: Labelled) -> Pair:
    """Both with the numbers of the bank: classes of one name are one class.

    Raises UserError: the same shards twice, or a class of the test set that the bank does not know: no comparison is
    right then.
    """
    if bank.index.digest == test.index.digest:
        raise UserError(
            f"{test.pattern}: --train and --test are the same shards, each test image would find itself"
        )
    if bank.names is None or test.names is None:
        return Pair(bank, test, _by_number(bank, test), None)
    labels, unknown = by_name(test.labels, test.names, bank.names)
    if unknown:
        raise UserError(
            f"{test.pattern}: has classes that {bank.pattern} does not know: {_listed(unknown)}; give shards that were "
            "packed with the same classes"
        )
    told = "" if bank.names == test.names else ": the two sets number them otherwise"
    _, unasked = by_name(bank.labels, bank.names, [test.names[i] for i in np.unique(test.labels)])
    apart = f"{test.pattern}: has no image of {_listed(unasked)} of {bank.pattern}" if unasked else None
    return Pair(bank, replace(test, labels=labels), f"compared by name{told}", apart)


def _by_number(bank: Labelled, test: Labelled) -> str:
    """How two sets compare of which one at least does not name its classes; UserError if they cannot."""
    named, other = (bank, test) if test.names is None else (test, bank)
    if named.index.classes:
        words = ", ".join(named.index.classes[:SHOWN])
        raise UserError(
            f"{named.pattern}: its classes are words ({words}, ...), those of {other.pattern} are numbers without "
            "names (classes.json), so they cannot be compared; pack both from sources with the same classes"
        )
    told = f": only {named.pattern} has names for them (classes.json)" if named.names else ""
    return f"compared by number{told}"


def _listed(counts: dict[str, int]) -> str:
    """Classes with their numbers of images: the first few."""
    some = ", ".join(
        f"{name} ({count:,} image{'s' * (count != 1)})" for name, count in [*counts.items()][:SHOWN]
    )
    return some + (", ..." if len(counts) > SHOWN else "")
