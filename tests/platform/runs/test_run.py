import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from vergence.platform.errors import UserError
from vergence.platform.runs import commit as commits
from vergence.platform.runs import run as module
from vergence.platform.runs.run import Run, is_live, locked, owns, run_names, valid_name
from vergence.platform.schema import SCHEMA

HOLD = """
import sys, time
from vergence.platform.runs.run import Run, locked
with locked(Run("r")):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture(autouse=True)
def state_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VERGENCE_HOME", str(tmp_path))


@pytest.fixture
def holder() -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen([sys.executable, "-c", HOLD], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_living_holder_is_refused_by_name(holder: subprocess.Popen[str]) -> None:
    with (
        pytest.raises(
            UserError, match=f"r: process {holder.pid} on {socket.gethostname()} is working on this run"
        ),
        locked(Run("r")),
    ):
        pass


def test_a_killed_holder_gives_way_even_before_it_is_reaped(holder: subprocess.Popen[str]) -> None:
    os.kill(holder.pid, signal.SIGKILL)
    time.sleep(0.2)
    run = Run("r")
    with locked(run):
        assert owns(run.path, run.attempt)
    assert not is_live(run.path)


def write_lock(run: Run, **changes: Any) -> Path:
    """A lock as of this very process, with changes; its path."""
    run.path.mkdir(exist_ok=True)
    (run.path / "lock.json").write_text(json.dumps(module.myself("old") | changes))
    return run.path / "lock.json"


def test_a_reused_pid_is_not_the_holder() -> None:
    run = Run("r")
    write_lock(run, started=1)
    with locked(run):
        assert not owns(run.path, "old")


@pytest.mark.parametrize("other", ["host", "boot", "pids"])
def test_a_holder_out_of_sight_holds_while_its_heart_beats(other: str) -> None:
    """Its process id says nothing here, whether or not a process has it."""
    run = Run("r")
    for pid in (os.getpid(), 2**22 + 1):
        lock = write_lock(run, pid=pid, **{other: "elsewhere"})
        os.utime(lock, (time.time() - 50, time.time() - 50))
        with pytest.raises(UserError, match=r"its last sign of life is 50 s old"), locked(run):
            pass
        assert is_live(run.path)
        os.utime(lock, (time.time() - 61, time.time() - 61))
        assert not is_live(run.path)
        with locked(run):
            pass
        assert not lock.exists()


def test_a_holder_in_another_pid_namespace_of_this_host_keeps_its_lock(
    unshared: Callable[[Sequence[str]], subprocess.Popen[str]],
) -> None:
    """As of containers that share host name and folder: the pid it knows itself by is somebody else's here, or nobody's."""
    process = unshared([sys.executable, "-c", HOLD])
    assert process.stdout.readline() == "held\n"
    run = Run("r")
    with pytest.raises(UserError, match="working on this run"), locked(run):
        pass
    assert is_live(run.path)


@pytest.mark.parametrize("text", ["", '{"host": "x", "pi', "\0" * 90, "null", "{}"])
def test_half_a_lock_holds_nothing(text: str) -> None:
    run = Run("r")
    run.path.mkdir()
    (run.path / "lock.json").write_text(text)
    assert not is_live(run.path)
    with locked(run):
        assert owns(run.path, run.attempt)


def beats(lock: Path, wait_s: float = 2.0) -> bool:
    """Whether the lock is touched."""
    os.utime(lock, (1, 1))
    deadline = time.monotonic() + wait_s
    while lock.stat().st_mtime == 1 and time.monotonic() < deadline:
        time.sleep(0.01)
    return lock.stat().st_mtime > 1


def test_the_heart_beats_on_after_a_touch_that_failed(
    tmp_path: Path, small_disk: Callable[[Path], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "HEARTBEAT_S", 0.02)
    small_disk(tmp_path / "r")
    run = Run("r")
    lock = run.path / "lock.json"
    with locked(run):
        assert beats(lock)
        assert os.system(f"mount -o remount,ro {run.path}") == 0
        time.sleep(0.2)
        assert os.system(f"mount -o remount,rw {run.path}") == 0
        assert beats(lock)
    assert not lock.exists()


def test_a_displaced_attempt_touches_its_successors_lock_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HEARTBEAT_S", 0.02)
    run = Run("r")
    with locked(run):
        assert beats(run.path / "lock.json")
        lock = write_lock(run, attempt="successor")
        assert not beats(lock, wait_s=0.3)
    assert lock.exists()


def test_facts_are_added_to() -> None:
    run = Run("r")
    run.path.mkdir()
    run.remember(version=3)
    run.remember(finished=True)
    facts = Run("r").facts()
    assert (facts.version, facts.finished, facts.mlflow_run) == (3, True, None)
    with pytest.raises(AssertionError):
        run.remember(verison=4)


@pytest.mark.parametrize("text", [None, "", '{"version": 3, "mlfl', "\0" * 40, "[]"])
def test_lost_facts_are_those_that_the_newest_whole_commit_knew(text: str) -> None:
    run = Run("r")
    for step in (1, 2, 3):
        facts = {"step": step, "run": {"id": "a1", "mlflow_run": f"at-{step}"}}
        commits.write(run.commits, {}, facts, "a", owned=lambda: True)
    (run.commits / commits.folder_name(3) / commits.MANIFEST).write_text("")
    if text is not None:
        (run.path / "run.json").write_text(text)
    assert (run.facts().id, run.facts().mlflow_run) == ("a1", "at-2")
    run.remember(version=3)
    known = {"schema": SCHEMA, "id": "a1", "mlflow_run": "at-2", "version": 3}
    assert json.loads((run.path / "run.json").read_text()) == known
    assert run_names() == ["r"]


@pytest.mark.parametrize("name", ["", ".x", "a/b", "../x"])
def test_names_that_are_no_folder_are_refused(name: str) -> None:
    with pytest.raises(UserError, match="one folder name"):
        valid_name(name)
