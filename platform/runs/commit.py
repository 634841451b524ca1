"""Commits: the durable state of a run, written whole or not at all (DESIGN C11).

A commit is a folder `step-00001200` with `state.safetensors` and `manifest.json`. It is written under a
hidden name, the manifest last, and renamed once; without a valid manifest it does not exist.
"""

import contextlib
import errno
import hashlib
import json
import logging
import math
import os
import secrets
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

from pydantic import BaseModel, Field, PositiveInt, field_validator

from vergence.platform.errors import UserError, VergenceError
from vergence.platform.files import sync, write_atomic
from vergence.platform.schema import SCHEMA
from vergence.platform.store import is_url

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)

STATE = "state.safetensors"
MANIFEST = "manifest.json"
DRAFT_LIFE_S = 3600.0  # without a write, after which another attempt's draft is a leftover


class CommitConfig(BaseModel, frozen=True, extra="forbid", strict=True):
    every_steps: PositiveInt = Field(200, description="steps between commits")
    keep: PositiveInt = Field(3, description="newest commits kept, besides the best and the final one")
    mirror: str | None = Field(
        None, description="URL of a folder in a store to which commits are copied; null = none"
    )

    @field_validator("mirror")
    @classmethod
    def _can_be_locked(cls, url: str | None) -> str | None:
        """A place of which one machine at a time can be the owner, without credentials in its address."""
        if url is None:
            return None
        try:
            parts = urlsplit(url)
            known = is_url(url)
        except UserError as error:
            raise ValueError(str(error)) from None
        if not known or not parts.netloc:
            raise ValueError("a mirror is a folder in a store, such as s3://BUCKET/runs")
        if parts.scheme.startswith("http"):
            raise ValueError(
                "a web server has no conditional put, so that two machines could own a run; use s3://, gs:// or az://"
            )
        if "@" in parts.netloc or parts.query or parts.fragment:
            raise ValueError("credentials come from the environment, never from an address")
        return url.rstrip("/")


class Commit(NamedTuple):
    path: Path
    manifest: Mapping[str, Any]

    @property
    def step(self) -> int:
        """Global batches consumed."""
        return int(self.manifest["step"])

    @property
    def score(self) -> float | None:
        """The monitor's score at this commit; one that is not finite is none."""
        score = self.manifest.get("score")
        return score if score is not None and math.isfinite(score) else None

    @property
    def score_name(self) -> str:
        """Which figure the score is, knn or h_effective_rank. Older commits do not say; a rank is above 1."""
        told: str | None = self.manifest.get("score_name")
        return told or ("knn" if (self.score or 0) <= 1 else "h_effective_rank")

    @property
    def monitor_due(self) -> bool:
        """Whether the epoch that ends here has still to be evaluated: a stop came first."""
        return bool(self.manifest.get("monitor_due"))


def folder_name(step: int) -> str:
    return f"step-{step:08d}"


def write(
    commits: Path,
    state: "Mapping[str, Tensor]",
    facts: Mapping[str, Any],
    attempt: str,
    owned: Callable[[], bool],
) -> Commit:
    """Commit `state` with `facts` (at least `step`); one process only.

    Raises VergenceError if `owned()` is false just before the manifest: another attempt has the run.
    OSError (a full disk) leaves every earlier commit as it was.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    target = commits / folder_name(facts["step"])
    done = read(target)
    if done is not None and is_intact(done):
        return done
    partial = commits / f".{target.name}.{attempt}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True, exist_ok=True)
    try:
        try:
            save_file({name: tensor.contiguous() for name, tensor in state.items()}, partial / STATE)
        except SafetensorError as error:  # its own type also for a full disk
            raise OSError(errno.ENOSPC if "No space" in str(error) else errno.EIO, str(error)) from error
        sync(partial / STATE)
        manifest = {
            "schema": SCHEMA,
            **facts,
            "attempt": attempt,
            "files": {STATE: {"bytes": (partial / STATE).stat().st_size, "sha256": _sha256(partial / STATE)}},
        }
        if not owned():
            raise VergenceError("another attempt has taken over this run; this one stops without a commit")
        write_atomic(partial / MANIFEST, json.dumps(manifest, indent=1))  # the folder is on the disk with it
        if target.exists():
            _discard(target, attempt)
        os.rename(partial, target)
        sync(commits)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return Commit(target, manifest)


def _discard(path: Path, attempt: str) -> None:
    """Delete a commit, under a hidden name: it may hold files that cannot be deleted yet (NFS), or we may be killed."""
    leftover = path.with_name(f".{path.name}.{secrets.token_hex(4)}.{attempt}")
    os.rename(path, leftover)
    shutil.rmtree(leftover, ignore_errors=True)


def read(path: Path) -> Commit | None:
    """The commit in a folder, or None if it is not whole: every file has the size that the manifest states.

    No bytes of the state are read: whoever loads it asks `is_intact` first.
    """
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        whole = all((path / name).stat().st_size == file["bytes"] for name, file in manifest["files"].items())
        whole = whole and STATE in manifest["files"] and isinstance(manifest["step"], int)
    except (OSError, ValueError, LookupError, TypeError, AttributeError):  # half written, or any other JSON
        return None
    return Commit(path, manifest) if whole else None


def is_intact(commit: Commit) -> bool:
    """Whether every file still has its digest; reads all of it, at about 1 GB/s."""
    files = commit.manifest["files"].items()
    return all(_sha256(commit.path / name) == file["sha256"] for name, file in files)


def newest(commits: Path) -> Commit | None:
    """The whole commit of the highest step."""
    for path in sorted(commits.glob("step-*"), reverse=True):
        commit = read(path)
        if commit is not None:
            return commit
    return None


def newest_intact(commits: Path) -> Commit | None:
    """The newest commit, its bytes checked; one whose bytes have changed is set aside as a leftover."""
    while (commit := newest(commits)) is not None and not is_intact(commit):
        log.warning("%s is damaged: a file does not have its digest any more", commit.path)
        os.rename(commit.path, commits / f".{commit.path.name}.{secrets.token_hex(4)}.damaged")
    return commit


def amend(commit: Commit, **facts: Any) -> None:
    """Change facts in a commit's manifest, which is replaced whole."""
    write_atomic(commit.path / MANIFEST, json.dumps({**commit.manifest, **facts}, indent=1))


def load_state(commit: Commit) -> "dict[str, Tensor]":
    """Name -> CPU tensor."""
    from safetensors.torch import load_file

    return load_file(commit.path / STATE)


def misfit(commit: Commit, expected: Mapping[str, tuple[int, ...]]) -> str | None:
    """How the state of a commit differs in names or shapes from what is expected, in words; None if it fits."""
    from safetensors import safe_open

    with safe_open(commit.path / STATE, "pt") as file:
        found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118  no mapping
    wrong = {
        "lacks": expected.keys() - found.keys(),
        "has besides": found.keys() - expected.keys(),
        "has in another shape": {
            name for name in expected if found.get(name, expected[name]) != expected[name]
        },
    }
    parts = [
        f"it {verb} {', '.join(sorted(names)[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''}"
        for verb, names in wrong.items()
        if names
    ]
    return "; ".join(parts) or None


def prune(commits: Path, keep: int, made: Commit) -> None:
    """Delete all commits up to `made`, the one just made, but the newest `keep` and the one with the best score.

    Only whole commits count. What lies beyond `made` was passed over when the run went on, so it is damaged, and is
    left until the run gets there. Drafts go if they are of the same attempt, or were last written to an hour ago.
    """
    for draft in commits.glob(".step-*"):
        if draft.name.endswith(f".{made.manifest['attempt']}") or _idle_s(draft) > DRAFT_LIFE_S:
            shutil.rmtree(draft, ignore_errors=True)
    paths = [path for path in sorted(commits.glob("step-*")) if path <= made.path]
    whole = [commit for path in paths if (commit := read(path))]
    kept = retained(whole, keep)
    for path in paths:
        if path not in kept:
            with contextlib.suppress(OSError):  # no reason to fail: the next commit tries again
                _discard(path, made.manifest["attempt"])


def retained(whole: Sequence[Commit], keep: int) -> set[Path]:
    """Of whole commits, oldest first, the newest `keep` and the one with the best score."""
    scores = {commit.path: commit.score for commit in whole if commit.score is not None}
    best = max(scores, key=lambda path: (scores[path], path), default=None)
    return {commit.path for commit in whole[-keep:]} | ({best} if best is not None else set())


def _idle_s(draft: Path) -> float:
    """Seconds since something was last written to a draft; 0 if it is gone meanwhile."""
    try:
        return time.time() - max(path.stat().st_mtime for path in (draft, *draft.iterdir()))
    except OSError:
        return 0.0


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
