"""The folder of index files: each is held by whoever uses it, and deleted when it is of no more use."""

import contextlib
import fcntl
import json
import os
import time
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

UNUSED_S = 30 * 24 * 3600.0  # without a use, after which an index is deleted
DRAFT_LIFE_S = 3600.0
SHARDS = "shards"  # a folder below: what single shards hold that cannot be put beside them


def hold(path: Path) -> BinaryIO:
    """An index file, opened; as long as it is open, `tidy` deletes it in no process."""
    file = path.open("rb")
    with contextlib.suppress(OSError):  # a file system without locks: `tidy` cannot lock there either
        fcntl.flock(file, fcntl.LOCK_SH)
    is_there = os.path.samestat(os.fstat(file.fileno()), path.stat())
    if is_there:
        return file
    file.close()  # it has been replaced since it was opened
    return hold(path)


def used(path: Path) -> None:
    """An index was asked for: it stays for another month."""
    with contextlib.suppress(OSError):  # somebody else's folder
        os.utime(path)


def tidy(made: Path) -> None:
    """Delete indexes beside `made` that it supersedes (older ones of the same shards), that are damaged or that nobody
    has used for a month, unless a living process holds them.
    """
    shards = _shards(made)
    for path in made.parent.glob("*.parquet"):
        if path != made and (_idle_s(path) > UNUSED_S or _shards(path) in (shards, None)):
            with contextlib.suppress(OSError), path.open("rb+") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
    for path in (made.parent / SHARDS).glob("*"):
        if _idle_s(path) > UNUSED_S:
            path.unlink(missing_ok=True)
    for draft in made.parent.glob(".*.parquet.*"):
        if _idle_s(draft) > DRAFT_LIFE_S:
            draft.unlink(missing_ok=True)


def _shards(path: Path) -> list[str] | None:
    """Paths of the shards that an index is of; None if it is damaged."""
    try:
        with path.open("rb") as file:
            about = json.loads(pq.read_schema(file).metadata[b"vergence"])
        return [shard for shard, _, _ in about["shards"]]
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException):
        return None


def _idle_s(path: Path) -> float:
    """Seconds since a file was made or last used; 0 if it is gone meanwhile."""
    try:
        return time.time() - path.stat().st_mtime
    except OSError:
        return 0.0
