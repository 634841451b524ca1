"""A run's commits in a store as well, so that the run outlives its machine.

A thread of the command copies them. The command holds the run's lock and sees every commit, whichever node it was written
on: rank 0 writes all of one, into the state folder that command and ranks share. Ranks know nothing of it: no step waits.
"""

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from vergence.platform.errors import UserError, VergenceError
from vergence.platform.masking import masked
from vergence.platform.runs import commit as commits
from vergence.platform.runs.commit import MANIFEST, Commit, CommitConfig
from vergence.platform.runs.lease import Lease
from vergence.platform.runs.past import Past
from vergence.platform.runs.remote import FACTS, RECIPE, RECORDS, Remote, folder_of, step_of
from vergence.platform.runs.run import Run
from vergence.platform.runs.stop import Stop
from vergence.platform.store import NotThere

log = logging.getLogger(__name__)

LOOK_S = 1.0  # between two looks for a new commit
RETRY_S = 10.0
CLOSE_S = 60.0  # that an end tries again where the store is away
QUIET_S = 2.0  # after which an end says what it waits for

Says = Callable[[str], None]


@contextlib.contextmanager
def mirrored(run: Run, config: CommitConfig, stop: Stop, says: Says) -> Iterator[None]:
    """Around a run whose local lock is held: the folder has the newest commit as the block begins, the mirror as it ends.

    Without `commit.mirror` nothing is done. stop: asked when another machine has taken the run over. Raises UserError:
    another machine works on the run, the mirror has another run of this name, the store refuses; store.Away: it
    does not answer, so that nobody knows who owns the run; VergenceError, after the block: it was taken over.
    """
    if config.mirror is None:
        yield
        return
    there = Remote(config.mirror, run.name)
    lease = Lease(there.store, there.lock, run.attempt, stop.ask)
    lease.take(says)
    try:
        mirror = Mirror(run, there, config.keep, lease, says, newer_wins(run, there, says))
        try:
            yield
        except Exception:
            mirror.close()
            raise
        mirror.close()
    finally:
        lease.release()
    if lease.taken_by is not None:
        raise VergenceError(
            f"run {run.name}: {lease.taken_by} has taken it over in {there.url}, which had no sign of life from here; this "
            f"one ends, its own commits are in {run.commits}"
        )


def is_mirrored(run: Run, config: CommitConfig) -> bool:
    """Whether the mirror has a commit to go on from."""
    return config.mirror is not None and any(True for _ in Remote(config.mirror, run.name).whole())


def newer_wins(run: Run, there: Remote, says: Says) -> list[Commit]:
    """Bring the run's folder to the newest commit of the two places; those that the mirror has, newest first.

    Newer ones of the mirror that are damaged are none. Raises UserError: they are commits of two runs.
    """
    past, found = Past.read(run), list(there.whole())
    here = commits.newest_intact(run.commits)
    if here is not None and past.has_begun and found:
        ids = [past.facts.id, (found[0].manifest.get("run") or {}).get("id")]
        if None not in ids and ids[0] != ids[1]:
            raise UserError(
                f"run {run.name}: {there.url} has another run of this name; choose another --name, or another commit.mirror"
            )
    while found and (here is None or found[0].step > here.step):
        if there.fetch(found[0], run):
            newer = "" if here is None else f", newer than step {here.step:,} here"
            says(f"run {run.name}: goes on from {there.url}, step {found[0].step:,}{newer}")
            return found
        says(f"{there.url}/commits/{found[0].path}: damaged, passed over")
        del found[0]  # no commit that could be kept for it
    if here is not None and found and found[0].step < here.step:
        says(
            f"run {run.name}: goes on from here, step {here.step:,}, newer than step {found[0].step:,} of {there.url}"
        )
    return found


class Mirror:
    """Copies a run's newest commit, whenever it has changed, from a thread of its own; what fails is tried again."""

    def __init__(
        self, run: Run, there: Remote, keep: int, lease: Lease, says: Says, has: list[Commit]
    ) -> None:
        """has: the whole commits of the mirror."""
        self.run, self.there, self.keep, self.lease, self.says = run, there, keep, lease, says
        self._has = {commit.path.name: commit for commit in has}
        self._copied: tuple[str, bytes, bytes] | None = (
            None  # folder, manifest, facts of what was copied last
        )
        self._copying: Commit | None = None
        self._error: Exception | None = None  # of the last try
        self._told = False  # the error, since the last try that succeeded
        self._closing, self._gives_up_s = threading.Event(), 0.0
        self._thread = threading.Thread(target=self._work, name="mirror", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Wait for the newest commit, as long as the store takes it, and say what it has not got."""
        self._gives_up_s = time.monotonic() + CLOSE_S
        self._closing.set()
        self._thread.join(QUIET_S)
        if self._thread.is_alive() and self._copying is not None:
            self.says(f"copying the commit at step {self._copying.step:,} to {self.there.url}")
        self._thread.join()
        newest = commits.newest(self.run.commits)
        if self._error is not None and self.lease.taken_by is None and newest is not None:
            self.says(
                f"{self.there.url} has not got the commit at step {newest.step:,} ({_reason(self._error)}); it is in "
                f"{self.run.commits}, the same command copies it"
            )

    def _work(self) -> None:
        while not self.lease.is_over:
            closing = self._closing.is_set()  # what there is by then is copied
            is_there = self._try()
            if closing and (is_there or time.monotonic() > self._gives_up_s):
                return
            if not is_there and closing:
                time.sleep(LOOK_S)
            elif self._error is not None or is_there:
                self._closing.wait(LOOK_S if is_there else RETRY_S)

    def _try(self) -> bool:
        """Whether the mirror has the newest commit."""
        try:
            is_there = self._bring()
        except Exception as error:  # of the store, or of a local disk: nothing of it ends the run
            log.info("mirror: %s", masked(str(error)))
            self._error = error
            if not self._told and not self._closing.is_set() and not self.lease.is_over:
                self.says(f"{_reason(error)}; training goes on, commits wait in {self.run.commits}")
                self._told = True
            return False
        self._error, self._told = None, False
        return is_there

    def _bring(self) -> bool:
        """Copy the newest commit if the mirror has not got it as it is; False: a newer one took its place meanwhile."""
        commit = commits.newest(self.run.commits)
        if commit is None:
            return True
        try:
            manifest = (commit.path / MANIFEST).read_bytes()
            now = folder_of(commit), manifest, _small(self.run.path / FACTS)
            if now != self._copied:
                self._copying = commit
                self._copy(commit, manifest)
                self._copied = now
                self._prune(commit)
        except (NotThere, FileNotFoundError):
            if commit.path.exists():
                raise
            return False
        return True

    def _copy(self, commit: Commit, manifest: bytes) -> None:
        folder = folder_of(commit)
        if folder not in self._has:
            for name in commit.manifest["files"]:
                self._put(folder, name, commit.path / name)
        for name, path in ((RECIPE, self.run.recipe_file), (FACTS, self.run.path / FACTS)):
            self._put(folder, name, _small(path))
        records = self.run.logs / RECORDS  # grow with the run
        self._put(folder, RECORDS, records if records.exists() else b"")
        self._put(folder, MANIFEST, manifest)
        self._has[folder] = Commit(Path(folder), commit.manifest)

    def _put(self, folder: str, name: str, data: bytes | Path) -> None:
        if not self.lease.may_write:
            raise VergenceError(f"{self.there.lock}: could not be renewed for a while")
        self.there.store.put(self.there.file(folder, name), data)

    def _prune(self, made: Commit) -> None:
        """Delete what the run's own rule keeps no longer, now that a newer commit is whole, and what was never whole."""
        whole = sorted(
            self._has.values(), key=lambda commit: (commit.step, commit.path.name == folder_of(made))
        )
        kept = {path.name for path in commits.retained(whole, self.keep)}
        try:
            for folder, files in self.there.folders().items():
                if folder in kept or (step_of(folder) or 0) > made.step:
                    continue
                self._has.pop(folder, None)
                for name in sorted(files, key=lambda name: name != MANIFEST):  # without it no commit is whole
                    if self.lease.may_write:
                        self.there.store.delete(files[name].url)
        except VergenceError as error:  # no reason to copy anything again: the next commit tries
            log.info("mirror: %s", masked(str(error)))


def _small(path: Path) -> bytes:
    """The bytes of a small file; none if it is not there."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""


def _reason(error: Exception) -> str:
    """What is wrong, without the advice for who would end."""
    return str(error).partition(";")[0]
