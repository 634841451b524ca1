"""A run's commits in a store: whole ones only, in another home bit-equal, and never in the run's way."""

import json
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
import torch
from object_servers import Faults

from vergence.platform import store as stores
from vergence.platform.errors import UserError, VergenceError
from vergence.platform.runs import commit as commits
from vergence.platform.runs import lease, mirror, remote
from vergence.platform.runs.commit import MANIFEST, STATE, Commit, CommitConfig
from vergence.platform.runs.mirror import mirrored
from vergence.platform.runs.remote import Remote, runs_in
from vergence.platform.runs.run import Run
from vergence.platform.runs.stop import Stop
from vergence.platform.store import store_of


@pytest.fixture(autouse=True)
def _hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"LOOK_S": 0.02, "RETRY_S": 0.1, "CLOSE_S": 1.0, "QUIET_S": 30.0}.items():
        monkeypatch.setattr(mirror, name, value)
    monkeypatch.setattr(lease, "BEAT_S", 0.1)
    monkeypatch.setattr(remote, "PATIENCE_S", 0.5)


def begun(name: str = "first", identity: str = "1d") -> Run:
    """A run as `pretrain` has begun it."""
    run = Run(name)
    run.logs.mkdir(parents=True, exist_ok=True)
    run.recipe_file.write_text("seed: 1  # a remark\n")
    run.remember(id=identity, data_digest="d" * 64)
    return run


def write(run: Run, step: int, score: float | None = None, keep: int = 2, size: int = 4) -> Commit:
    """A commit and the records up to it, by the rule of the rank loop."""
    with (run.logs / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": step - 1, "loss": 1.0}) + "\n")
    state = {"model.w": torch.full((size,), float(step))}
    facts = {"step": step, "score": score, "counts": {}, "run": run.facts().dump()}
    made = commits.write(run.commits, state, facts, run.attempt, owned=lambda: True)
    commits.prune(run.commits, keep, made)
    return made


@contextmanager
def working(
    run: Run, bucket: str, said: list[str] | None = None, keep: int = 2, stop: Stop | None = None
) -> Iterator[Remote]:
    config = CommitConfig(keep=keep, mirror=bucket)
    with mirrored(run, config, stop or Stop(), (said if said is not None else []).append):
        yield Remote(bucket, run.name)


def wait(condition: Callable[[], object], timeout_s: float = 20) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def steps(there: Remote) -> list[int]:
    return [commit.step for commit in there.whole()]


def is_there(there: Remote, step: int) -> bool:
    return step in steps(there)


def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """From here on the state folder is another machine's."""
    monkeypatch.setenv("VERGENCE_HOME", str(tmp_path / "elsewhere"))


def assert_equal(there: Remote, local: Commit) -> None:
    """The newest commit of the mirror has the bytes of a local one."""
    newest = next(there.whole())
    for name in (STATE, MANIFEST):
        url = there.file(newest.path.name, name)
        assert there.store.get(url)[0] == (local.path / name).read_bytes(), name


def test_every_commit_is_copied_its_manifest_last_and_retention_is_the_runs(
    bucket: str, faults: Faults
) -> None:
    run = begun()
    with working(run, bucket) as there:
        for step, score in ((2, 0.9), (4, 0.1), (6, None), (8, None)):
            made = write(run, step, score)
            wait(partial(is_there, there, step))
        wait(lambda: len(there.folders()) == 3)
        assert steps(there) == [8, 6, 2]  # the newest two, and the best
        assert_equal(there, made)
    order = [
        request.rpartition("/")[2]
        for request in faults.requests
        if request.startswith("PUT") and f"step-00000008.{run.attempt}" in request
    ]
    assert order == [STATE, "recipe.resolved.yaml", "run.json", "metrics.jsonl", MANIFEST]


def test_another_home_has_what_this_one_had(
    bucket: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run = begun()
    with working(run, bucket):
        made = write(run, 6)
        run.remember(finished=True, tracked=True, version=3, mlflow_run="m")
    state, records = commits.load_state(made), (run.logs / "metrics.jsonl").read_text()
    elsewhere(monkeypatch, tmp_path)
    said, other = list[str](), Run("first")
    with working(other, bucket, said) as there:
        found = commits.newest_intact(other.commits)
        assert found is not None
        assert found.manifest == made.manifest
        assert torch.equal(commits.load_state(found)["model.w"], state["model.w"])
        assert (other.logs / "metrics.jsonl").read_text() == records
        assert other.recipe_file.read_text() == "seed: 1  # a remark\n"
        facts = other.facts()
        assert (facts.id, facts.mlflow_run) == ("1d", "m")
        assert not facts.finished  # the encoder is not here: it is exported anew
        assert facts.version is None
        write(other, 8)
    assert steps(there) == [8, 6]
    assert said == [f"run first: goes on from {bucket}/first, step 6"]


def test_the_newer_commit_wins_wherever_it_is(
    bucket: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run = begun()
    with working(run, bucket):
        write(run, 6)
    shutil.copytree(tmp_path / "here", tmp_path / "elsewhere")
    write(run, 8)  # without its mirror
    said = list[str]()
    with working(run, bucket, said) as there:
        assert said == [f"run first: goes on from here, step 8, newer than step 6 of {bucket}/first"]
    assert steps(there) == [8, 6]
    elsewhere(monkeypatch, tmp_path)
    other = Run("first")
    with working(other, bucket, said):
        newest = commits.newest(other.commits)
        assert newest is not None
        assert newest.step == 8
    assert said[1] == f"run first: goes on from {bucket}/first, step 8, newer than step 6 here"


@pytest.mark.parametrize(
    "damage", ["no manifest", "half a manifest", "a byte less", "another byte", "no state"]
)
def test_half_a_commit_is_passed_over_for_the_one_before(
    bucket: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, damage: str
) -> None:
    run = begun()
    with working(run, bucket) as there:
        write(run, 6)
        wait(lambda: steps(there) == [6])
        newest = write(run, 8)
        wait(lambda: steps(there) == [8, 6])
    folder, store = f"step-00000008.{run.attempt}", store_of(bucket)
    state, manifest = (newest.path / STATE).read_bytes(), (newest.path / MANIFEST).read_bytes()
    match damage:
        case "no manifest":
            store.delete(there.file(folder, MANIFEST))
        case "half a manifest":
            store.put(there.file(folder, MANIFEST), manifest[: len(manifest) // 2])
        case "a byte less":
            store.put(there.file(folder, STATE), state[:-1])
        case "another byte":
            store.put(there.file(folder, STATE), state[:-1] + bytes([state[-1] ^ 1]))
        case "no state":
            store.delete(there.file(folder, STATE))
    elsewhere(monkeypatch, tmp_path)
    other = Run("first")
    with working(other, bucket):
        found = commits.newest_intact(other.commits)
        assert found is not None
        assert found.step == 6
        assert [path.name for path in other.commits.iterdir()] == ["step-00000006"]
        write(other, 8)
    assert [*there.folders()] == [f"step-00000008.{other.attempt}", f"step-00000006.{run.attempt}"]


def test_a_damaged_commit_pushes_no_other_out(
    bucket: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run = begun()
    with working(run, bucket) as there:
        for step in (4, 8):
            made = write(run, step)
            wait(partial(is_there, there, step))
    url, state = there.file(f"step-00000008.{run.attempt}", STATE), (made.path / STATE).read_bytes()
    there.store.put(url, state[:-1] + bytes([state[-1] ^ 1]))
    elsewhere(monkeypatch, tmp_path)
    other = Run("first")
    with working(other, bucket, keep=1):
        write(other, 6, keep=1)
    assert [*there.folders()] == [f"step-00000008.{run.attempt}", f"step-00000006.{other.attempt}"]


def test_commits_of_the_wrong_size_are_none(bucket: str) -> None:
    run = begun()
    with working(run, bucket) as there:
        made = write(run, 6)
    assert steps(there) == [6]
    there.store.put(there.file(f"step-00000006.{run.attempt}", STATE), (made.path / STATE).read_bytes()[:-1])
    assert steps(there) == []


def test_a_local_commit_whose_bytes_have_changed_comes_back_from_the_mirror(bucket: str) -> None:
    run = begun()
    with working(run, bucket):
        made = write(run, 6)
    state = (made.path / STATE).read_bytes()
    (made.path / STATE).write_bytes(state[:-1] + b"\x7f")
    with working(Run("first"), bucket):
        assert (made.path / STATE).read_bytes() == state


def test_another_run_of_the_name_is_not_gone_on_with(
    bucket: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run = begun()
    with working(run, bucket):
        write(run, 6)
    elsewhere(monkeypatch, tmp_path)
    other = begun(identity="2d")
    write(other, 2)
    with pytest.raises(UserError, match="another run of this name"), working(other, bucket):
        pass
    assert Remote(bucket, "first").holder() is None


def test_what_an_evaluation_adds_to_a_commit_is_copied_too(bucket: str, faults: Faults) -> None:
    run = begun()
    with working(run, bucket) as there:
        made = write(run, 6)
        wait(lambda: steps(there) == [6])
        commits.amend(made, score=0.5)
        wait(lambda: next(there.whole()).score == 0.5)
    assert sum(STATE in request and request.startswith("PUT") for request in faults.requests) == 1


def test_commits_that_come_faster_than_they_are_copied_supersede_each_other(
    bucket: str, faults: Faults
) -> None:
    run = begun()
    with working(run, bucket, keep=1) as there:
        faults.latency_s = 0.05
        for step in range(1, 30):
            made = write(run, step, keep=1)
            time.sleep(0.02)
        faults.latency_s = 0.0
    assert_equal(there, made)
    assert steps(there) == [29]
    copied = {
        request.split("/")[-2] for request in faults.requests if f"PUT /{bucket[5:]}/first/commits" in request
    }
    assert len(copied) < 15


def test_an_end_waits_for_the_last_commit_and_says_for_what(
    bucket: str, faults: Faults, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirror, "QUIET_S", 0.1)
    run, said = begun(), list[str]()
    with working(run, bucket, said) as there:
        faults.latency_s = 0.2
        made = write(run, 2)
    assert_equal(there, made)
    assert said == [f"copying the commit at step 2 to {bucket}/first"]


def test_who_cannot_renew_its_lock_writes_nothing(
    bucket: str, faults: Faults, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "WRITES_S", -1.0)
    monkeypatch.setattr(mirror, "CLOSE_S", 0.1)
    run, said = begun(), list[str]()
    with working(run, bucket, said) as there:
        write(run, 2)
    assert there.folders() == {}
    assert "could not be renewed for a while" in said[-1]


def test_a_store_that_is_away_stops_nothing_and_is_told_of_twice(
    bucket: str, faults: Faults, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stores, "PART_RETRIES", 0)
    caplog.set_level(logging.INFO, mirror.__name__)
    run, said = begun(), list[str]()
    with working(run, bucket, said) as there:
        write(run, 2)
        wait(lambda: steps(there) == [2])
        faults.away = True
        began = time.monotonic()
        write(run, 4)
        assert time.monotonic() - began < 1
        wait(lambda: sum("mirror: " in line for line in caplog.messages) == 3, 30)  # times that it was tried
        assert len(said) == 1
        write(run, 6)
    assert len(said) == 2
    assert "training goes on, commits wait in" in said[0]
    assert "has not got the commit at step 6" in said[1]
    assert "the same command copies it" in said[1]
    faults.away = False
    with working(Run("first"), bucket, said) as there:
        pass
    assert steps(there)[0] == 6


def test_a_store_that_fails_at_every_fifth_request_has_the_commit(bucket: str, faults: Faults) -> None:
    run = begun()
    faults.errors = faults.resets = faults.lost = faults.busy = 0.05
    with working(run, bucket) as there:
        for step in range(1, 8):
            made = write(run, step, size=3 << 20)  # in parts
            time.sleep(0.1)
    faults.errors = faults.resets = faults.lost = faults.busy = 0.0
    assert_equal(there, made)


def test_who_was_taken_over_stops_and_writes_no_more(bucket: str, faults: Faults) -> None:
    run, stop, said, theirs = (
        begun(),
        Stop(),
        list[str](),
        {"host": "elsewhere", "pid": 7, "attempt": "theirs"},
    )
    written = list[int]()

    def puts() -> int:
        return sum(request.startswith("PUT") for request in faults.requests)

    def work() -> None:
        with working(run, bucket, said, stop=stop) as there:
            write(run, 2)
            wait(lambda: steps(there) == [2])
            there.store.put(there.lock, json.dumps(theirs).encode())
            wait(lambda: stop.is_asked)
            written.append(puts())
            write(run, 4)  # as a run does that is to stop
            time.sleep(0.3)

    with pytest.raises(VergenceError, match="process 7 on elsewhere has taken it over") as raised:
        work()
    assert raised.value.exit_code == 1
    assert written == [puts()]
    assert said == []


def test_whatever_ends_a_run_has_its_last_commit_copied(bucket: str) -> None:
    run, there = begun(), Remote(bucket, "first")

    def work() -> None:
        with working(run, bucket):
            write(run, 2)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        work()
    assert steps(there) == [2]


def test_records_of_a_long_run_go_and_come_in_parts(
    bucket: str, faults: Faults, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run = begun()
    records = run.logs / "metrics.jsonl"
    records.write_bytes(b"x" * (9 << 20))
    with working(run, bucket):
        write(run, 2)
    assert sum("metrics.jsonl?partNumber" in request for request in faults.requests) == 2
    elsewhere(monkeypatch, tmp_path)
    other = Run("first")
    faults.requests.clear()
    with working(other, bucket):
        assert (other.logs / "metrics.jsonl").read_bytes() == records.read_bytes()
    assert sum(r.startswith("GET") and "metrics.jsonl" in r for r in faults.requests) == 2


def test_ctrl_c_gives_the_run_back_at_once(bucket: str) -> None:
    run = begun()
    with pytest.raises(KeyboardInterrupt), working(run, bucket):
        raise KeyboardInterrupt
    assert Remote(bucket, "first").holder() is None
    wait(lambda: "mirror" not in [thread.name for thread in threading.enumerate()])


def test_runs_of_a_mirror_are_found_with_their_holder(bucket: str) -> None:
    for name in ("b", "a"):
        run = begun(name)
        with working(run, bucket):
            write(run, 2)
            (there,) = [each for each in runs_in(bucket) if each.name == name]
            holder = there.holder()
            assert holder is not None
            assert holder.holder["pid"] == os.getpid()
    assert [(each.name, steps(each), each.holder()) for each in runs_in(bucket)] == [
        ("a", [2], None),
        ("b", [2], None),
    ]


def test_without_a_mirror_no_store_is_asked(faults: Faults, bucket: str) -> None:
    with mirrored(begun(), CommitConfig(), Stop(), print):
        pass
    assert faults.requests == []


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("https://host/runs", "no conditional put"),
        ("/mnt/runs", "a folder in a store"),
        ("s3:///runs", "a folder in a store"),
        ("ftp://host/runs", "no store is reached by ftp"),
        ("s3://key:secret@bucket/runs", "never from an address"),
        ("az://container/runs?sig=x", "never from an address"),
    ],
)
def test_where_no_mirror_can_be(url: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        CommitConfig(mirror=url)
