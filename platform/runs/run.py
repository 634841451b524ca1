"""The run folder and its lock: one living process a run (DESIGN C12)."""

import fcntl
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from vergence.platform.errors import UserError
from vergence.platform.files import write_atomic
from vergence.platform.home import home

HEARTBEAT_S = 10.0
STALE_AFTER_S = 60.0
_FACTS = threading.Lock()


@dataclass(frozen=True)
class Run:
    """`home()/NAME` and, while this process holds the lock, the id of its attempt."""

    name: str
    attempt: str = field(default_factory=lambda: secrets.token_hex(4))

    @property
    def path(self) -> Path:
        return home() / self.name

    @property
    def recipe_file(self) -> Path:
        return self.path / "recipe.resolved.yaml"

    @property
    def commits(self) -> Path:
        return self.path / "commits"

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    @property
    def exports(self) -> Path:
        return self.path / "exports"

    def facts(self) -> dict[str, Any]:
        """What the run folder remembers: data digest, MLflow run, batch regime, registered version ..."""
        try:
            facts: dict[str, Any] = json.loads((self.path / "run.json").read_text())
            return facts
        except FileNotFoundError:
            return {}

    def forget(self) -> None:
        """Drop recipe and facts."""
        for path in (self.recipe_file, self.path / "run.json"):
            path.unlink(missing_ok=True)

    def remember(self, **facts: Any) -> None:
        """Add facts to run.json, atomically; the tracker's thread does so too."""
        with _FACTS:
            write_atomic(self.path / "run.json", json.dumps(self.facts() | facts, indent=1))


def run_names() -> list[str]:
    """Names of the runs in the state folder."""
    return sorted(path.parent.name for path in home().glob("*/recipe.resolved.yaml"))


def valid_name(name: str) -> str:
    """The name if it can be a folder of the state folder, else UserError."""
    if not name or name.startswith(".") or "/" in name or name in ("index", "artifacts", "ray"):
        raise UserError(f"--name {name!r}: a run name is one folder name, not starting with a dot")
    return name


@contextmanager
def locked(run: Run) -> Iterator[None]:
    """Hold the run's lock; UserError naming the holder if another process lives on it."""
    run.path.mkdir(parents=True, exist_ok=True)
    lock = run.path / "lock.json"
    with (run.path / ".lock.guard").open(
        "w"
    ) as guard:  # two starters look at a stale lock one after the other
        fcntl.flock(guard, fcntl.LOCK_EX)
        holder = lock_holder(run.path)
        if holder is not None and _lives(holder, lock):
            raise UserError(
                f"{run.name}: process {holder['pid']} on {holder['host']} is working on this run; "
                f"wait for it, stop it, or choose another --name"
            )
        write_atomic(lock, json.dumps(_myself(run.attempt)))
    stop = threading.Event()
    beat = threading.Thread(target=_heartbeat, args=(lock, stop), daemon=True)
    beat.start()
    try:
        yield
    finally:
        stop.set()
        beat.join()
        if owns(run.path, run.attempt):
            lock.unlink(missing_ok=True)


def lock_holder(path: Path) -> Mapping[str, Any] | None:
    """Contents of a run folder's lock, or None."""
    try:
        holder: Mapping[str, Any] = json.loads((path / "lock.json").read_text())
        return holder
    except (FileNotFoundError, ValueError):
        return None


def owns(path: Path, attempt: str) -> bool:
    """Whether the attempt still holds the run folder's lock."""
    holder = lock_holder(path)
    return holder is not None and holder["attempt"] == attempt


def is_live(path: Path) -> bool:
    """Whether a living process holds the run folder's lock."""
    holder = lock_holder(path)
    return holder is not None and _lives(holder, path / "lock.json")


def _myself(attempt: str) -> dict[str, Any]:
    process = psutil.Process()
    return {
        "host": socket.gethostname(),
        "pid": process.pid,
        "started": process.create_time(),
        "attempt": attempt,
    }


def _lives(holder: Mapping[str, Any], lock: Path) -> bool:
    if holder["host"] != socket.gethostname():
        return time.time() - lock.stat().st_mtime < STALE_AFTER_S
    try:
        process = psutil.Process(holder["pid"])
        same = abs(process.create_time() - holder["started"]) < 1
        return same and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _heartbeat(lock: Path, stop: threading.Event) -> None:
    while not stop.wait(HEARTBEAT_S):
        if lock.exists():
            os.utime(lock)
