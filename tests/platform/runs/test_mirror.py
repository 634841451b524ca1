"""A run's commits in a store: whole ones only, and in another home bit-equal."""

import os
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from mirrored_runs import assert_equal, begun, elsewhere, is_there, steps, wait, working, write
from object_servers import Faults

from vergence.platform.errors import UserError
from vergence.platform.runs import commit as commits
from vergence.platform.runs.commit import MANIFEST, STATE, CommitConfig
from vergence.platform.runs.mirror import mirrored
from vergence.platform.runs.remote import Remote, runs_in
from vergence.platform.runs.run import Run
from vergence.platform.runs.stop import Stop
from vergence.platform.store import store_of

pytestmark = pytest.mark.usefixtures("hasty")


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
