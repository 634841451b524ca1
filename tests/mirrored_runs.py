"""Runs with a mirror as they are begun, write commits and move, without training."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from vergence.platform.runs import commit as commits
from vergence.platform.runs.commit import MANIFEST, STATE, Commit, CommitConfig
from vergence.platform.runs.mirror import mirrored
from vergence.platform.runs.remote import Remote
from vergence.platform.runs.run import Run
from vergence.platform.runs.stop import Stop


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
