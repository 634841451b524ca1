"""Reads and decodes every sample of a set of shards, and names what is broken."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from vergence.platform.data.decode import MAX_PIXELS, BadSample
from vergence.platform.data.expand import expand
from vergence.platform.data.formats import MEMBER_EXTENSIONS
from vergence.platform.data.index import Index, keep
from vergence.platform.data.labels import why_no_class
from vergence.platform.data.progress import Bar
from vergence.platform.data.read import Reader
from vergence.platform.data.scan import scan

BATCH = 256


class Broken(NamedTuple):
    shard: str  # its path or URL
    key: str | None  # None: the shard as a whole
    reason: str


class Checked(NamedTuple):
    num_shards: int
    num_samples: int  # in the shards that can be indexed
    broken: list[Broken]
    notes: list[str]  # a line each for what is not used and is no fault


def check_shards(
    pattern: str | Path, cache: Path, max_pixels: int = MAX_PIXELS, progress: bool = False
) -> Checked:
    """All that is broken in the shards of a pattern: shards, then images that end in no sample, then samples.

    Raises UserError when the pattern matches nothing.
    """
    shards = expand(pattern)
    scanned = scan(shards.found, progress, cache)
    others = scanned.without_images if len(scanned.without_images) < len(shards.found) else {}
    unusable = scanned.damaged | (others if len(scanned.table) else scanned.without_images)
    broken = [Broken(path, None, reason) for path, reason in unusable.items()]
    for path, lost in scanned.lost.items():
        broken += [Broken(path, None, line) for line in lost.lines("images that end in no sample")]
    notes = shards.notes + scanned.said + scanned.views.lines("images of other views, not used")
    if not len(scanned.table):
        return Checked(len(shards.found), 0, broken, notes)
    if scanned.mixed:
        broken.append(Broken(str(pattern), "(classes)", scanned.mixed))
    index = keep(scanned, [each for each in shards.found if each.url not in scanned.damaged], cache)
    return Checked(len(shards.found), len(index), broken + check(index, max_pixels, progress), notes)


def check(index: Index, max_pixels: int = MAX_PIXELS, progress: bool = False) -> list[Broken]:
    """The samples whose image cannot be decoded or whose class cannot be read, in the order of ids.

    In a set without images, those whose other members cannot be.
    """
    reader, broken = Reader(index, max_pixels), []
    with Bar("checking", len(index), enabled=progress) as advance:
        for start in range(0, len(index), BATCH):
            ids = np.arange(start, min(start + BATCH, len(index)))
            classes = reader.raw(ids, "cls") if "cls" in index.extensions else [None] * len(ids)
            for i, reasons, data in zip(ids.tolist(), _members(reader, ids), classes):
                if "cls" in index.extensions and (reason := why_no_class(data)):
                    reasons.append(reason)
                broken += [Broken(index.shard_of(i), index.key(i), reason) for reason in reasons]
            advance(len(ids))
    return broken


def _members(reader: Reader, ids: np.ndarray) -> list[list[str]]:
    """What is wrong with the members of each sample: its image, or where the set has no images those it has."""
    if reader.index.extensions_of("image"):
        return [[str(image)] if isinstance(image, BadSample) else [] for image in reader.images(ids)]
    reasons: list[list[str]] = [[] for _ in ids]
    for kind in MEMBER_EXTENSIONS:
        there = np.flatnonzero(reader.index.members(kind, ids)[1] >= 0)
        for row, member in zip(there, reader.field(ids[there], kind)):
            reasons[row] += [str(member)] if isinstance(member, BadSample) else []
    return reasons
