import errno
import math
import multiprocessing
import os
import select
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from vergence.platform.errors import VergenceError
from vergence.platform.runs import commit as commits
from vergence.platform.runs.commit import Commit

STATE = {
    "model.w": torch.arange(24, dtype=torch.float32).view(2, 3, 2, 2).to(memory_format=torch.channels_last),
    "optim.w.step": torch.tensor(7.0),
    "model.queue.pointer": torch.tensor(3),
}


def write(
    folder: Path,
    step: int,
    score: float | None = None,
    state: dict[str, torch.Tensor] | None = None,
    owned: Callable[[], bool] = lambda: True,
) -> Commit:
    facts = {"step": step, "score": score, "counts": {}}
    return commits.write(folder, state or STATE, facts, "attempt", owned=owned)


def steps(folder: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in folder.glob("step-*"))


def test_state_comes_back_bit_equal(tmp_path: Path) -> None:
    write(tmp_path, 5)
    newest = commits.newest(tmp_path)
    assert newest.step == 5
    loaded = commits.load_state(newest)
    assert loaded.keys() == STATE.keys()
    assert all(
        torch.equal(loaded[name], STATE[name]) and loaded[name].dtype == STATE[name].dtype for name in STATE
    )


def test_newest_passes_over_commits_that_are_not_whole(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        write(tmp_path, step)
    (tmp_path / commits.folder_name(4) / commits.MANIFEST).unlink()
    state = tmp_path / commits.folder_name(3) / commits.STATE
    state.write_bytes(state.read_bytes()[:-1])
    assert commits.newest(tmp_path).step == 2


def flip_a_bit(commit: Commit) -> None:
    state = commit.path / commits.STATE
    data = bytearray(state.read_bytes())
    data[-1] ^= 1  # same size, another bit
    state.write_bytes(data)


def test_a_commit_whose_bytes_have_changed_is_set_aside_before_it_is_loaded(tmp_path: Path) -> None:
    write(tmp_path, 1)
    flip_a_bit(write(tmp_path, 2))
    assert commits.newest_intact(tmp_path).step == 1
    assert commits.newest(tmp_path).step == 1
    flip_a_bit(commits.newest(tmp_path))
    assert commits.newest_intact(tmp_path) is None


def test_a_commit_whose_bytes_have_changed_is_written_again(tmp_path: Path) -> None:
    flip_a_bit(write(tmp_path, 2))
    assert commits.is_intact(write(tmp_path, 2))


def test_looking_for_the_newest_commit_reads_no_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, 1)
    read = []
    monkeypatch.setattr(commits, "_sha256", lambda path: read.append(path))
    assert commits.newest(tmp_path).step == 1
    assert not read


def test_an_attempt_that_lost_the_run_cannot_commit(tmp_path: Path) -> None:
    write(tmp_path, 1)
    with pytest.raises(VergenceError, match="another attempt"):
        write(tmp_path, 2, owned=lambda: False)
    assert commits.newest(tmp_path).step == 1
    assert [path.name for path in tmp_path.iterdir()] == [commits.folder_name(1)]


def test_a_valid_commit_is_not_written_again(tmp_path: Path) -> None:
    first = write(tmp_path, 1)
    before = os.stat(first.path / commits.STATE).st_ino
    write(tmp_path, 1, state={"model.w": torch.zeros(1)})
    assert os.stat(first.path / commits.STATE).st_ino == before


def test_prune_keeps_newest_and_best(tmp_path: Path) -> None:
    for step, score in ((1, 0.2), (2, 0.9), (3, None), (4, 0.3), (5, None)):
        write(tmp_path, step, score)
    commits.prune(tmp_path, 2, commits.newest(tmp_path))
    assert steps(tmp_path) == [2, 4, 5]


def test_prune_keeps_no_old_commit_when_none_has_a_score(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        write(tmp_path, step)
    commits.prune(tmp_path, 1, commits.newest(tmp_path))
    assert steps(tmp_path) == [3]


def test_prune_keeps_no_commit_for_a_score_that_is_not_finite(tmp_path: Path) -> None:
    for step, score in ((1, math.nan), (2, 0.1), (3, 0.5), (4, math.inf), (5, None)):
        write(tmp_path, step, score)
    commits.prune(tmp_path, 1, commits.newest(tmp_path))
    assert steps(tmp_path) == [3, 5]


def no_manifest(path: Path) -> None:
    (path / commits.MANIFEST).unlink()


def empty_manifest(path: Path) -> None:
    os.truncate(path / commits.MANIFEST, 0)


def half_a_manifest(path: Path) -> None:
    os.truncate(path / commits.MANIFEST, (path / commits.MANIFEST).stat().st_size // 2)


def manifest_of_another_kind(path: Path) -> None:
    (path / commits.MANIFEST).write_text("null")


def manifest_of_no_files(path: Path) -> None:
    (path / commits.MANIFEST).write_text('{"step": 300, "files": {}}')


def half_a_state(path: Path) -> None:
    os.truncate(path / commits.STATE, (path / commits.STATE).stat().st_size // 2)


def another_bit(path: Path) -> None:
    flip_a_bit(commits.read(path))


DAMAGE = [
    no_manifest, empty_manifest, half_a_manifest, manifest_of_another_kind, manifest_of_no_files, half_a_state,
    another_bit,
]  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("keep", [1, 2])
def test_a_damaged_newest_commit_costs_no_whole_one(
    tmp_path: Path, damage: Callable[[Path], None], keep: int
) -> None:
    """Steps 100 and 150 are whole, 300 was hit by a power cut: the run goes on from 150 and commits at 153."""
    for step in (100, 150, 300):
        write(tmp_path, step)
    damage(tmp_path / commits.folder_name(300))
    made = commits.read(tmp_path / commits.folder_name(150))
    commits.prune(tmp_path, keep, made)  # whether or not somebody has looked at the damaged one before
    assert commits.newest_intact(tmp_path).step == 150
    commits.prune(tmp_path, keep, write(tmp_path, 153))
    assert commits.newest_intact(tmp_path).step == 153
    whole = [step for step in steps(tmp_path) if step != 300]
    assert whole == [150, 153][-keep:]


def test_a_damaged_commit_is_replaced_when_the_run_gets_there_and_else_deleted(tmp_path: Path) -> None:
    for step in (100, 300, 400):
        write(tmp_path, step)
    empty_manifest(tmp_path / commits.folder_name(300))
    half_a_state(tmp_path / commits.folder_name(400))
    assert write(tmp_path, 300).step == 300
    assert commits.newest(tmp_path).step == 300
    commits.prune(tmp_path, 5, write(tmp_path, 500))
    assert steps(tmp_path) == [100, 300, 500]


def test_prune_leaves_drafts_of_other_attempts_until_they_are_old(tmp_path: Path) -> None:
    drafts = {name: tmp_path / f".{commits.folder_name(7)}.{name}" for name in ("attempt", "other", "gone")}
    for draft in drafts.values():
        draft.mkdir()
        (draft / commits.STATE).write_bytes(b"half")
    old = time.time() - commits.DRAFT_LIFE_S - 1
    for path in (drafts["gone"] / commits.STATE, drafts["gone"], drafts["other"]):
        os.utime(path, (old, old))  # the other's folder is old, but its state is still being written
    commits.prune(tmp_path, 1, write(tmp_path, 5))
    assert sorted(path.name for path in tmp_path.iterdir()) == [drafts["other"].name, commits.folder_name(5)]


def commit_without_end(folder: Path, step: int, told: int) -> None:
    """Commit and prune, and tell each step into a pipe; in a process of its own."""
    while True:
        commits.prune(folder, 2, write(folder, step, state={"model.w": torch.full((1 << 18,), float(step))}))
        os.write(told, f"{step}\n".encode())
        step += 1


def test_a_kill_at_any_moment_leaves_the_last_commit_and_no_half_one(tmp_path: Path) -> None:
    last = 0
    for kill in range(12):
        reading, writing = os.pipe()
        process = multiprocessing.get_context("fork").Process(
            target=commit_without_end, args=(tmp_path, last + 1, writing)
        )
        process.start()
        os.close(writing)
        assert select.select([reading], [], [], 30)[0]  # it has told its first step
        time.sleep(0.003 * kill)
        process.kill()
        process.join()
        with open(reading) as told:
            steps_told = [int(line) for line in told]
        newest = commits.newest_intact(tmp_path)
        assert newest.step >= steps_told[-1] > last
        assert commits.load_state(newest)["model.w"][-1] == newest.step
        assert all(commits.read(path) for path in tmp_path.glob("step-*"))
        last = newest.step


def test_a_target_that_cannot_be_emptied_does_not_stop_a_commit(
    tmp_path: Path, small_disk: Callable[[Path], Path]
) -> None:
    """A mount below a damaged commit stands for what NFS keeps of files that another process has open."""
    write(tmp_path, 1)
    damaged = tmp_path / commits.folder_name(2)
    small_disk(damaged / "held")
    assert write(tmp_path, 2).step == 2
    assert commits.newest(tmp_path).step == 2
    leftover = next(path for path in tmp_path.iterdir() if (path / "held").is_mount())
    commits.prune(tmp_path, 1, commits.newest(tmp_path))
    assert steps(tmp_path) == [2]
    os.system(f"umount {leftover / 'held'}")
    commits.prune(tmp_path, 1, commits.newest(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == [commits.folder_name(2)]


def test_files_and_their_folder_are_on_the_disk_before_the_commit_gets_its_name(
    tmp_path: Path, disk_events: list[tuple[str, str]]
) -> None:
    write(tmp_path, 1)
    draft = str(tmp_path / f".{commits.folder_name(1)}.attempt")
    renamed = disk_events.index(("renamed", draft))
    before, after = disk_events[:renamed], disk_events[renamed + 1 :]
    assert ("synced", f"{draft}/{commits.STATE}") in before
    assert before[-1] == ("synced", draft)
    assert ("synced", str(tmp_path)) in after


def test_full_disk_leaves_the_last_commit_intact(small_disk: Callable[[Path], Path], tmp_path: Path) -> None:
    disk = small_disk(tmp_path / "disk")
    write(disk, 1)
    with pytest.raises(OSError, match=r"[Nn]o space") as caught:
        write(disk, 2, state={"model.w": torch.randn(1 << 19)})
    assert caught.value.errno == errno.ENOSPC
    assert commits.newest(disk).step == 1
    assert [path.name for path in disk.iterdir()] == [commits.folder_name(1)]
    write(disk, 3)  # the space that the attempt took is free again
    shutil.rmtree(disk / commits.folder_name(1))


def test_misfit_names_what_differs_from_the_expected_state(tmp_path: Path) -> None:
    state = {"model.a": torch.zeros(2, 3), "model.b": torch.zeros(4), "optim.a.step": torch.zeros(())}
    commit = commits.write(tmp_path, state, {"step": 1}, "x", owned=lambda: True)
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    assert commits.misfit(commit, shapes) is None
    assert commits.misfit(commit, {**shapes, "model.c": (1,)}) == "it lacks model.c"
    assert commits.misfit(commit, {"model.a": (2, 3), "model.b": (5,)}) == (
        "it has besides optim.a.step; it has in another shape model.b"
    )
