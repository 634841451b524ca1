import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from vergence.platform.errors import UserError
from vergence.platform.runs.run import Run, is_live, locked, owns, valid_name

HOLD = """
import sys, time
from vergence.platform.runs.run import Run, locked
with locked(Run("r")):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture(autouse=True)
def state_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("VERGENCE_HOME", str(tmp_path))


@pytest.fixture
def holder():
    process = subprocess.Popen([sys.executable, "-c", HOLD], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_a_living_holder_is_refused_by_name(holder):
    with (
        pytest.raises(
            UserError, match=f"r: process {holder.pid} on {socket.gethostname()} is working on this run"
        ),
        locked(Run("r")),
    ):
        pass


def test_a_killed_holder_gives_way_even_before_it_is_reaped(holder):
    os.kill(holder.pid, signal.SIGKILL)
    time.sleep(0.2)
    run = Run("r")
    with locked(run):
        assert owns(run.path, run.attempt)
    assert not is_live(run.path)


def test_a_reused_pid_is_not_the_holder():
    run = Run("r")
    run.path.mkdir()
    lock = {"host": socket.gethostname(), "pid": os.getpid(), "started": 1.0, "attempt": "old"}
    (run.path / "lock.json").write_text(json.dumps(lock))
    with locked(run):
        assert not owns(run.path, "old")


def test_another_host_holds_while_its_heart_beats():
    run = Run("r")
    run.path.mkdir()
    lock = run.path / "lock.json"
    lock.write_text(json.dumps({"host": "elsewhere", "pid": 1, "started": 1.0, "attempt": "old"}))
    with pytest.raises(UserError, match="on elsewhere"), locked(run):
        pass
    os.utime(lock, (time.time() - 61, time.time() - 61))
    with locked(run):
        pass
    assert not lock.exists()


def test_facts_are_added_to():
    run = Run("r")
    run.path.mkdir()
    run.remember(version=3)
    run.remember(finished=True)
    assert Run("r").facts() == {"version": 3, "finished": True}


@pytest.mark.parametrize("name", ["", ".x", "a/b", "../x"])
def test_names_that_are_no_folder_are_refused(name):
    with pytest.raises(UserError, match="one folder name"):
        valid_name(name)
