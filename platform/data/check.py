"""Reads and decodes every sample of a set of shards, and names what is broken."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vergence.platform.data.decode import MAX_PIXELS, BadSample
from vergence.platform.data.index import Index, expand, index_shards, scan
from vergence.platform.data.progress import Bar
from vergence.platform.data.read import Reader, parse_label
from vergence.platform.errors import UserError

BATCH = 256


class Broken(NamedTuple):
    shard: Path
    key: str | None  # None: the shard as a whole
    reason: str


class Checked(NamedTuple):
    num_shards: int
    num_samples: int  # in the shards that can be indexed
    broken: list[Broken]


def check_shards(
    pattern: str | Path, cache: Path, max_pixels: int = MAX_PIXELS, progress: bool = False
) -> Checked:
    """All that is broken in the shards of a pattern: shards that are no tar first, then samples.

    Raises UserError when the pattern matches nothing.
    """
    shards = expand(pattern)
    broken, good = _damaged(shards, progress)
    if not good:
        return Checked(len(shards), 0, broken)
    index = index_shards(good, cache, progress)
    return Checked(len(shards), len(index), broken + check(index, max_pixels, progress))


def check(index: Index, max_pixels: int = MAX_PIXELS, progress: bool = False) -> list[Broken]:
    """The samples whose image cannot be decoded or whose class cannot be parsed, in the order of ids."""
    reader, broken = Reader(index, max_pixels), []
    with Bar("checking", len(index), enabled=progress) as advance:
        for start in range(0, len(index), BATCH):
            ids = np.arange(start, min(start + BATCH, len(index)))
            labels = reader.raw(ids, "cls") if "cls" in index.extensions else None
            for i, image in enumerate(reader.images(ids)):
                reasons = [str(image)] if isinstance(image, BadSample) else []
                if labels and parse_label(labels[i]) is None:
                    reasons.append(
                        "no class (.cls)" if labels[i] is None else f".cls is {labels[i]!r:.40}, no number"
                    )
                broken += [Broken(index.shard_of(ids[i]), index.key(ids[i]), reason) for reason in reasons]
            advance(len(ids))
    return broken


def _damaged(shards: Sequence[Path], progress: bool) -> tuple[list[Broken], list[Path]]:
    broken, good = [], []
    with Bar("scanning shards", len(shards), enabled=progress) as advance:
        for path in shards:
            try:
                scan([path])
                good.append(path)
            except UserError as error:
                broken.append(Broken(path, None, str(error).removeprefix(f"{path}: ")))
            advance(1)
    return broken, good
