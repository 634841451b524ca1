import errno
import json
import os
import shutil

import pytest
import torch

from vergence.platform.errors import VergenceError
from vergence.platform.runs import commit as commits

STATE = {
    "model.w": torch.arange(24, dtype=torch.float32).view(2, 3, 2, 2).to(memory_format=torch.channels_last),
    "optim.w.step": torch.tensor(7.0),
    "model.queue.pointer": torch.tensor(3),
}


def write(folder, step, score=None, state=None, owned=lambda: True):
    facts = {"step": step, "score": score, "counts": {}}
    return commits.write(folder, state or STATE, facts, "attempt", owned=owned)


def test_state_comes_back_bit_equal(tmp_path):
    write(tmp_path, 5)
    newest = commits.newest(tmp_path)
    assert newest.step == 5
    loaded = commits.load_state(newest)
    assert loaded.keys() == STATE.keys()
    assert all(
        torch.equal(loaded[name], STATE[name]) and loaded[name].dtype == STATE[name].dtype for name in STATE
    )


def test_newest_passes_over_commits_that_are_not_whole(tmp_path):
    for step in (1, 2, 3, 4):
        write(tmp_path, step)
    (tmp_path / commits.folder_name(4) / commits.MANIFEST).unlink()
    state = tmp_path / commits.folder_name(3) / commits.STATE
    state.write_bytes(state.read_bytes()[:-1])
    assert commits.newest(tmp_path).step == 2


def flip_a_bit(commit):
    state = commit.path / commits.STATE
    data = bytearray(state.read_bytes())
    data[-1] ^= 1  # same size, another bit
    state.write_bytes(data)


def test_a_commit_whose_bytes_have_changed_is_set_aside_before_it_is_loaded(tmp_path):
    write(tmp_path, 1)
    flip_a_bit(write(tmp_path, 2))
    assert commits.newest_intact(tmp_path).step == 1
    assert commits.newest(tmp_path).step == 1
    flip_a_bit(commits.newest(tmp_path))
    assert commits.newest_intact(tmp_path) is None


def test_a_commit_whose_bytes_have_changed_is_written_again(tmp_path):
    flip_a_bit(write(tmp_path, 2))
    assert commits.is_intact(write(tmp_path, 2))


def test_looking_for_the_newest_commit_reads_no_state(tmp_path, monkeypatch):
    write(tmp_path, 1)
    read = []
    monkeypatch.setattr(commits, "_sha256", lambda path: read.append(path))
    assert commits.newest(tmp_path).step == 1
    assert not read


def test_an_attempt_that_lost_the_run_cannot_commit(tmp_path):
    write(tmp_path, 1)
    with pytest.raises(VergenceError, match="another attempt"):
        write(tmp_path, 2, owned=lambda: False)
    assert commits.newest(tmp_path).step == 1
    assert [path.name for path in tmp_path.iterdir()] == [commits.folder_name(1)]


def test_a_valid_commit_is_not_written_again(tmp_path):
    first = write(tmp_path, 1)
    before = os.stat(first.path / commits.STATE).st_ino
    write(tmp_path, 1, state={"model.w": torch.zeros(1)})
    assert os.stat(first.path / commits.STATE).st_ino == before


def test_prune_keeps_newest_and_best(tmp_path):
    for step, score in ((1, 0.2), (2, 0.9), (3, None), (4, 0.3), (5, None)):
        write(tmp_path, step, score)
    commits.prune(tmp_path, keep=2)
    assert sorted(json.loads((p / commits.MANIFEST).read_text())["step"] for p in tmp_path.iterdir()) == [
        2,
        4,
        5,
    ]


def test_prune_keeps_no_old_commit_when_none_has_a_score(tmp_path):
    for step in (1, 2, 3):
        write(tmp_path, step)
    commits.prune(tmp_path, keep=1)
    assert [path.name for path in tmp_path.iterdir()] == [commits.folder_name(3)]


def test_full_disk_leaves_the_last_commit_intact(small_disk, tmp_path):
    disk = small_disk(tmp_path / "disk")
    write(disk, 1)
    with pytest.raises(OSError, match=r"[Nn]o space") as caught:
        write(disk, 2, state={"model.w": torch.randn(1 << 19)})
    assert caught.value.errno == errno.ENOSPC
    assert commits.newest(disk).step == 1
    assert [path.name for path in disk.iterdir()] == [commits.folder_name(1)]
    write(disk, 3)  # the space that the attempt took is free again
    shutil.rmtree(disk / commits.folder_name(1))


def test_misfit_names_what_differs_from_the_expected_state(tmp_path):
    state = {"model.a": torch.zeros(2, 3), "model.b": torch.zeros(4), "optim.a.step": torch.zeros(())}
    commit = commits.write(tmp_path, state, {"step": 1}, "x", owned=lambda: True)
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    assert commits.misfit(commit, shapes) is None
    assert commits.misfit(commit, {**shapes, "model.c": (1,)}) == "it lacks model.c"
    assert commits.misfit(commit, {"model.a": (2, 3), "model.b": (5,)}) == (
        "it has besides optim.a.step; it has in another shape model.b"
    )
