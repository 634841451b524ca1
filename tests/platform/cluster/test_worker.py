"""What a worker leaves behind, without a cluster: the outcome, or a start anew for what that may mend."""

import errno
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import NoReturn

import pytest
import ray
import ray.train
from ray import cloudpickle

from vergence.platform.cluster import worker
from vergence.platform.cluster.worker import beyond_mending, work
from vergence.platform.errors import UserError, VergenceError
from vergence.platform.runs.outcome import Outcome, leave_outcome, read_outcome, reserve_outcome

RUN = Path("/runs/r")


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (VergenceError("no sample can be read"), "no sample can be read"),
        (UserError("match fits nothing"), "match fits nothing"),
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device (/runs/r)"),
        (OSError(errno.EDQUOT, "Disk quota exceeded", "/x/f"), "Disk quota exceeded (/x/f)"),
    ],
)
def test_data_recipe_and_full_disk_are_beyond_mending(
    error: VergenceError | UserError | OSError, reason: str, tmp_path: Path
) -> None:
    assert beyond_mending(error, RUN).startswith(reason)
    if isinstance(error, VergenceError):
        error.args = (f"{error}\nTo change retry attempts, configure Ray",)  # as Ray Data does
    in_a_task = ray.exceptions.RayTaskError("read", "traceback", error).as_instanceof_cause()
    assert beyond_mending(in_a_task, RUN).startswith(reason)
    assert "\n" not in beyond_mending(in_a_task, RUN)


@pytest.mark.parametrize("error", [RuntimeError("gloo"), OSError(errno.EIO, "I/O error"), AssertionError()])
def test_the_rest_may_be_mended_by_a_new_start(error: RuntimeError | OSError | AssertionError) -> None:
    assert beyond_mending(error, RUN) is None


@pytest.fixture
def job(tmp_path: Path) -> SimpleNamespace:
    (tmp_path / "logs").mkdir()
    path = tmp_path / "logs" / "outcome.a.json"
    reserve_outcome(path)
    return SimpleNamespace(run=tmp_path, attempt="a", outcome_file=path)


def worked(
    monkeypatch: pytest.MonkeyPatch, job: SimpleNamespace, train: Callable[[], object], rank: int = 0
) -> None:
    """`work` on a rank whose training is a function; what Ray would see is raised."""
    context = SimpleNamespace(get_world_rank=lambda: rank, get_world_size=lambda: 2)
    monkeypatch.setattr(ray.train, "get_context", lambda: context)
    monkeypatch.setattr(worker, "_train", lambda *_: train())
    monkeypatch.setattr(worker, "log_to_file", lambda path: None)
    work({"job": cloudpickle.dumps((job, None))})


@pytest.mark.parametrize(("rank", "left"), [(0, Outcome("finished")), (1, None)])
def test_the_outcome_is_left_by_rank_0(
    monkeypatch: pytest.MonkeyPatch, job: SimpleNamespace, rank: int, left: Outcome | None
) -> None:
    worked(monkeypatch, job, lambda: Outcome("finished"), rank)
    assert read_outcome(job.outcome_file) == left


def raises(error: Exception) -> Callable[[], NoReturn]:
    def train() -> None:
        raise error

    return train


@pytest.mark.parametrize("rank", [0, 1])
def test_what_no_new_start_mends_is_left_by_whichever_rank_finds_it(
    monkeypatch: pytest.MonkeyPatch, job: SimpleNamespace, rank: int
) -> None:
    with pytest.raises(VergenceError):
        worked(monkeypatch, job, raises(VergenceError("no sample can be read")), rank)
    assert read_outcome(job.outcome_file) == Outcome("failed", "no sample can be read")


def test_what_a_new_start_may_mend_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, job: SimpleNamespace
) -> None:
    with pytest.raises(RuntimeError):
        worked(monkeypatch, job, raises(RuntimeError("a peer is gone")))
    assert read_outcome(job.outcome_file) is None


def test_ranks_that_are_started_anew_after_a_failure_return_at_once(
    monkeypatch: pytest.MonkeyPatch, job: SimpleNamespace
) -> None:
    leave_outcome(job.outcome_file, Outcome("failed", "full"))
    worked(monkeypatch, job, pytest.fail)
    assert read_outcome(job.outcome_file) == Outcome("failed", "full")
