"""The run folder and its lock: one living process a run (DESIGN C12)."""

import contextlib
import fcntl
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vergence.platform.errors import UserError
from vergence.platform.files import read_mapping, write_atomic
from vergence.platform.home import home
from vergence.platform.runs import commit as commits
from vergence.platform.runs.facts import RunFacts, read_facts

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
    def initial_file(self) -> Path:
        """Pretrained weights that the run begins with, until it has ended or goes on from a commit."""
        return self.path / "initial.safetensors"

    @property
    def exports(self) -> Path:
        return self.path / "exports"

    def facts(self) -> RunFacts:
        """What the run remembers: data digest, MLflow run, batch regime, registered version ..."""
        return facts_of(self.path)

    def forget(self) -> None:
        """Drop recipe and facts."""
        for path in (self.recipe_file, self.path / "run.json"):
            path.unlink(missing_ok=True)

    def remember(self, **facts: Any) -> None:
        """Add facts (see RunFacts) to run.json, atomically; the tracker's thread does so too."""
        with _FACTS:
            write_atomic(self.path / "run.json", json.dumps(self.facts().but(**facts).dump(), indent=1))


def facts_of(path: Path) -> RunFacts:
    """See `read_facts`; commits are looked at only if run.json is not whole."""
    whole = read_mapping(path / "run.json") is not None
    return read_facts(path, None if whole else commits.newest(path / "commits"))


def run_names() -> list[str]:
    """Names of the runs in the state folder, damaged ones too."""
    signs = ("recipe.resolved.yaml", "run.json", "commits")
    return sorted({path.parent.name for sign in signs for path in home().glob(f"*/{sign}")})


RESERVED = ("artifacts", "features", "index", "ray")  # folders of the state folder that are no runs


def valid_name(name: str, asked: str = "--name") -> str:
    """The name if it can be a folder of the state folder, else UserError, which begins with `asked`."""
    if name in RESERVED:
        raise UserError(
            f"{asked} {name}: is reserved, Vergence keeps its own files there; reserved are {', '.join(RESERVED)}"
        )
    if not name or name.startswith(".") or "/" in name:
        raise UserError(f"{asked} {name!r}: a run name is one folder name, not starting with a dot")
    return name


@contextlib.contextmanager
def locked(run: Run) -> Iterator[None]:
    """Hold the run's lock; UserError naming the holder if another process lives on it."""
    run.path.mkdir(parents=True, exist_ok=True)
    lock = run.path / "lock.json"
    with (run.path / ".lock.guard").open("w") as guard:
        fcntl.flock(guard, fcntl.LOCK_EX)  # two starters look at a stale lock one after the other
        holder = lock_holder(run.path)
        if holder is not None and _lives(holder, lock):
            sign = f" (its last sign of life is {_silence_s(lock):.0f} s old; {STALE_AFTER_S:.0f} s count as death)"
            raise UserError(
                f"{run.name}: process {holder['pid']} on {holder['host']} is working on this run"
                f"{'' if is_near(holder) else sign}; wait for it, stop it, or choose another --name"
            )
        write_atomic(lock, json.dumps(myself(run.attempt)))
    stop = threading.Event()
    beat = threading.Thread(target=_heartbeat, args=(lock, run.attempt, stop), daemon=True)
    beat.start()
    try:
        yield
    finally:
        stop.set()
        beat.join()
        if owns(run.path, run.attempt):
            lock.unlink(missing_ok=True)


def lock_holder(path: Path) -> Mapping[str, Any] | None:
    """Contents of a run folder's lock; None without one, or if a power cut has left half of it."""
    holder = read_mapping(path / "lock.json")
    return holder if holder is not None and {"host", "pid", "started", "attempt"} <= holder.keys() else None


def owns(path: Path, attempt: str) -> bool:
    """Whether the attempt still holds the run folder's lock."""
    holder = lock_holder(path)
    return holder is not None and holder["attempt"] == attempt


def is_live(path: Path) -> bool:
    """Whether a living process holds the run folder's lock."""
    holder = lock_holder(path)
    return holder is not None and _lives(holder, path / "lock.json")


def myself(attempt: str) -> dict[str, Any]:
    """This process as the holder of a lock."""
    return {**_place(), "pid": os.getpid(), "started": _started(os.getpid()), "attempt": attempt}


def _place() -> dict[str, str]:
    """Where a process id means the same process: a host name alone may be that of several containers, or boots."""
    return {
        "host": socket.gethostname(),
        "boot": Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
        "pids": os.readlink("/proc/self/ns/pid"),
    }


def _lives(holder: Mapping[str, Any], lock: Path) -> bool:
    """By its process where that can be seen from here, else by its heartbeat."""
    if is_near(holder):
        return lives_here(holder)
    return _silence_s(lock) < STALE_AFTER_S


def lives_here(holder: Mapping[str, Any]) -> bool:
    """Whether a holder that is near is alive."""
    return _started(holder["pid"]) == holder["started"]


def is_near(holder: Mapping[str, Any]) -> bool:
    """Whether the holder's process can be seen from here: same host, boot and process ids."""
    return all(holder.get(name) == value for name, value in _place().items())


def _silence_s(lock: Path) -> float:
    """Seconds since the last beat of a lock's holder; endless if it has given the lock back meanwhile."""
    try:
        return time.time() - lock.stat().st_mtime
    except FileNotFoundError:
        return float("inf")


def _started(pid: int) -> int | None:
    """Clock ticks from boot to the start of a process, which no change of the clock moves; None if it is dead."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if state in "ZX" else int(fields[18])  # proc_pid_stat(5): state is field 3, starttime 22


def _heartbeat(lock: Path, attempt: str, stop: threading.Event) -> None:
    """Touch the lock as long as it is the attempt's own; what fails once is tried again at the next beat."""
    while not stop.wait(HEARTBEAT_S):
        with contextlib.suppress(OSError, ValueError), lock.open() as file:
            if json.load(file)["attempt"] == attempt:
                os.utime(file.fileno())
