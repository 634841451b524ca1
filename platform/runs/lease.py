"""A run's lock in its mirror: one machine at a time owns the run, wherever the state folders are.

The lock is a small object that is only replaced by conditional put: of two who take it, one wins. Its holder writes it
anew every 20 s. Who finds it held watches it, and takes it over when it has stayed the same for 90 s by the watcher's own
clock: no two clocks need agree. The holder itself writes nothing to the mirror 60 s after its last sign of life.
"""

import json
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from vergence.platform.errors import UserError, VergenceError
from vergence.platform.runs.run import is_near, lives_here, myself
from vergence.platform.store import Changed, NotThere, Store

log = logging.getLogger(__name__)

BEAT_S = 20.0
STALE_AFTER_S = 90.0
WRITES_S = 60.0
LOOK_S = 5.0  # between two looks at a lock that somebody else holds
GOODBYE_S = 30.0  # that an end waits for a beat under way
_held: set[str] = set()  # attempts of this process that hold a lock, or are about to


class Found(NamedTuple):
    """A lock as it stands."""

    holder: Mapping[str, Any]  # empty if it is no lock of ours
    version: str

    @property
    def is_free(self) -> bool:
        """Given back, or left by a process of this machine that is dead, or by this one when the store was away."""
        if self.holder.get("released"):
            return True
        if not is_near(self.holder):
            return False
        is_over = self.holder["pid"] == os.getpid() and self.holder["attempt"] not in _held
        return is_over or not lives_here(self.holder)

    def __str__(self) -> str:
        return f"process {self.holder.get('pid', '?')} on {self.holder.get('host', '?')}"


class Lease:
    """The lock of one attempt, kept alive by a thread from `take` to `release`."""

    def __init__(self, store: Store, url: str, attempt: str, on_loss: Callable[[], None]) -> None:
        """url: of the lock; on_loss: called, on the thread, when somebody else has it."""
        self.store, self.url, self.on_loss = store, url, on_loss
        self.taken_by: Found | None = None
        self._me, self._beat, self._version, self._alive_s = myself(attempt), 0, "", 0.0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beats, name="lease", daemon=True)

    @property
    def is_over(self) -> bool:
        """Given back, or taken by somebody else."""
        return self.taken_by is not None or self._ended.is_set()

    @property
    def may_write(self) -> bool:
        """Whether nobody else can have the lock by now."""
        return not self.is_over and _clock_s() - self._alive_s < WRITES_S

    def take(self, says: Callable[[str], None]) -> None:
        """Raises UserError: another process works on the run, or the store has no conditional put; store.Away."""
        _held.add(self._me["attempt"])
        try:
            self._win(says)
            self._prove()
        except BaseException:
            _held.discard(self._me["attempt"])
            raise
        self._thread.start()

    def release(self) -> None:
        """Give the lock back, if the store answers; else it is taken over in time."""
        self._ended.set()
        _held.discard(self._me["attempt"])
        self._thread.join(GOODBYE_S)
        if self.taken_by is None and not self._thread.is_alive():
            try:
                self._put(self._version, released=True)
            except VergenceError as error:
                log.info("the lock is not given back: %s", error)

    def _win(self, says: Callable[[str], None]) -> None:
        seen, since = None, 0.0
        while True:
            found = read_lock(self.store, self.url)
            if found is not None and not found.is_free:
                if is_near(found.holder) or (seen is not None and found.version != seen):
                    raise UserError(
                        f"{self.url}: {found} is working on this run; stop it, or choose another --name"
                    )
                if seen is None:
                    seen, since = found.version, _clock_s()
                    says(
                        f"{self.url}: held by {found}; taken over if it gives no sign of life for {STALE_AFTER_S:g} s"
                    )
                if _clock_s() - since < STALE_AFTER_S:
                    time.sleep(LOOK_S)
                    continue
            if self._put(None if found is None else found.version) is None:
                return  # else somebody was faster: look again

    def _beats(self) -> None:
        while not self._ended.wait(BEAT_S):
            try:
                self.taken_by = self._put(self._version)
            except Exception as error:  # the store is away, or refuses for a while: the next beat tries again
                log.info("no sign of life: %s", error)
            if self.taken_by is not None:
                self.on_loss()
                return

    def _put(self, replaces: str | None, *, released: bool = False) -> Found | None:
        """Write the lock in the place of this version of it; who has it, if somebody else does.

        A put whose answer was lost may have succeeded: then the lock has this very beat.
        """
        self._beat += 1
        own = {**self._me, "beat": self._beat, "renewed": time.time(), "released": released}
        while True:
            began = _clock_s()
            try:
                self._version = self.store.put(self.url, json.dumps(own).encode(), replaces)
                break
            except (Changed, NotThere):
                found = read_lock(self.store, self.url)
            if found is not None and found.holder.get("attempt") != self._me["attempt"]:
                return found
            if found is not None and found.holder.get("beat") == self._beat:
                self._version = found.version
                break
            replaces = None if found is None else found.version
        self._alive_s = began
        return None

    def _prove(self) -> None:
        """That the store refuses to make what is there. Raises UserError: it does not."""
        try:
            self.store.put(self.url, b"{}", None)
        except Changed:
            return
        raise UserError(
            f"{self.url}: this store overwrites what a conditional put must leave, so that two machines could own the "
            "run; use one that has conditional puts (S3, MinIO, GCS, Azure), or leave commit.mirror out"
        )


def read_lock(store: Store, url: str) -> Found | None:
    """The lock at this URL; None if there is none."""
    try:
        data, found = store.get(url)
    except NotThere:
        return None
    try:
        holder = json.loads(data)
    except ValueError:
        holder = None
    return Found(holder if isinstance(holder, dict) else {}, found.version)


def _clock_s() -> float:
    """Goes on while a machine sleeps, and is never set."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
