"""A run from where it stands to its end, without Ray: in place of training, a function leaves what the ranks would."""

import contextlib
import shutil
import signal
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from shard_files import png, write_shard

from vergence.methods.parts.backbones import EncoderConfig, build_encoder
from vergence.pipelines import UserError, VergenceError, advance, pretrain
from vergence.pipelines.advance import Observer, RunResult, what_exists
from vergence.pipelines.pretrain import Interrupt
from vergence.pipelines.recipe import load_recipe
from vergence.pipelines.resolve import Resolved
from vergence.platform.cluster import session
from vergence.platform.cluster.capacity import Need
from vergence.platform.mlflow_store import store, tracking_uri
from vergence.platform.runs import commit as commits
from vergence.platform.runs.outcome import Outcome
from vergence.platform.runs.records import Note
from vergence.platform.runs.run import Run, owns
from vergence.platform.runs.stop import Stop
from vergence.platform.train.engine import expected_state

STEPS = 2
SETTINGS = [
    "encoder.width=0.0625", "method.hidden_dim=8", "method.embed_dim=4", "views.0.size=8", "data.holdout=0",
    "batch.global=16", "epochs=1", "scale.workers=1", "norm.group=4", "schedule.warmup_epochs=0", "track.register=null",
]  # fmt: skip


class Ranks:
    """In place of `core.train`: the next of `ends` is (status, step of the commit that is left, or None)."""

    def __init__(self, ends: Sequence[tuple[Any, int | None]]) -> None:
        self.ends, self.sessions = list(ends), 0
        self.started: list[int] = []

    def __call__(
        self,
        resolved: Resolved,
        run: Run,
        session: object,
        *,
        stop: Stop,
        observe: Observer,
        stages: dict[str, float],
        pause_after: int | None,
    ) -> Outcome:
        status, step = self.ends.pop(0)
        self.started.append(resolved.start_step)
        job = resolved.job(run, stages)
        if step is not None:
            method = job.build()
            state = {f"model.{name}": value for name, value in method.state_dict().items()}
            slots = expected_state(method, job.optim)
            state |= {name: torch.zeros(shape) for name, shape in slots.items() if name not in state}
            facts = {**job.facts, "step": step, "counts": {"bad": 0, "skipped": 0}, "score": 0.5}
            facts["run"] = run.facts().dump()
            commits.write(run.commits, state, facts, run.attempt, owned=lambda: owns(run.path, run.attempt))
        if status == "failed":
            raise VergenceError("the ranks failed")
        return Outcome(status)

    def opened(self, need: Need) -> AbstractContextManager[SimpleNamespace]:
        self.sessions += 1
        return contextlib.nullcontext(SimpleNamespace(place="own", need=need))


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty_store: Path) -> Callable[..., Any]:
    """`pretrain` of a run, and the notes it makes; the ranks come to the given ends."""
    monkeypatch.setenv("VERGENCE_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "home").mkdir()
    shutil.copy(empty_store, tmp_path / "home" / "mlflow.db")
    pixels = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), dtype=np.uint8)
    shard = write_shard(tmp_path / "t.tar", ((f"{i}", {"png": png(p)}) for i, p in enumerate(pixels)))

    def start(*ends: tuple[Any, int | None]) -> tuple[Ranks, Callable[..., Any]]:
        ranks = Ranks(ends)
        monkeypatch.setattr(advance, "train", ranks)
        monkeypatch.setattr(session, "opened", ranks.opened)

        def again(*changes: str, stop: Stop | None = None) -> tuple[RunResult, list[str]]:
            events: list[Any] = []
            result = pretrain(
                "simclr-cifar10",
                [*SETTINGS, f"data.train={shard}", *changes],
                name="r",
                stop=stop,
                observe=events.append,
            )
            return result, [event.text for event in events if isinstance(event, Note)]

        return ranks, again

    return start


def mlflow_status() -> str:
    with store(tracking_uri()) as client:
        (found,) = client.search_runs([each.experiment_id for each in client.search_experiments()])
    return found.info.status


def test_a_run_is_stopped_gone_on_with_finished_tracked_later_and_then_done(
    command: Callable[..., Any],
) -> None:
    ranks, pretrain_again = command(("interrupted", 1), ("finished", STEPS))
    stopped, _ = pretrain_again()
    assert (stopped.status, stopped.commit.step, stopped.score, stopped.version) == (
        "interrupted",
        1,
        0.5,
        None,
    )
    assert mlflow_status() == "KILLED"
    assert not stopped.run.exports.exists()

    finished, said = pretrain_again()
    assert (finished.status, finished.commit.step) == ("finished", STEPS)
    assert ranks.started == [0, 1]
    assert "exporting the encoder" in said
    assert (finished.run.exports / "encoder.pt2").exists()
    assert mlflow_status() == "FINISHED"

    made = (finished.run.exports / "encoder.pt2").stat().st_mtime_ns
    finished.run.remember(tracked=False)
    tracked, said = pretrain_again()
    assert tracked.status == "finished"
    assert "is trained" in said[0]
    assert tracked.run.facts().tracked
    assert (finished.run.exports / "encoder.pt2").stat().st_mtime_ns == made

    done, said = pretrain_again()
    assert done.status == "finished"
    (line,) = said
    assert "finished, nothing to do" in line
    assert "; next:\n  vergence look r " in line  # there are no classes by which `evaluate` could measure
    assert ranks.started == [0, 1]
    assert ranks.sessions == 2  # who only hands over starts no Ray


def test_what_follows_names_the_version_that_was_made_and_suits_the_data(command: Callable[..., Any]) -> None:
    """`@champion` may be another run's encoder by then."""
    run, recipe = Run("r"), load_recipe("simclr-cifar10")
    run.path.mkdir(parents=True)
    run.remember(version=3, labelled=True)
    assert what_exists(recipe, run).endswith(
        "\n  vergence evaluate models:/simclr-cifar10/3 --train SHARDS --test SHARDS"
    )
    run.remember(labelled=False)
    assert "\n  vergence embed models:/simclr-cifar10/3 'cifar10/train-*.tar' vectors" in what_exists(
        recipe, run
    )


def test_a_failure_is_an_exception_and_the_same_call_goes_on(command: Callable[..., Any]) -> None:
    ranks, pretrain_again = command(("failed", 1), ("interrupted", STEPS))
    with pytest.raises(VergenceError, match="the ranks failed"):
        pretrain_again()
    assert mlflow_status() == "FAILED"
    pretrain_again()
    assert ranks.started == [0, 1]


def test_a_mistake_before_the_first_commit_is_forgotten_and_later_ones_are_refused(
    command: Callable[..., Any],
) -> None:
    ranks, pretrain_again = command(("interrupted", None), ("interrupted", 1))
    pretrain_again("optim.lr=3.0")
    mistaken = Run("r").facts()
    pretrain_again()
    assert Run("r").facts().id not in (None, mistaken.id)
    with pytest.raises(UserError, match=r"optim\.lr .* -> 3\.0"):
        pretrain_again("optim.lr=3.0")
    assert ranks.started == [0, 0]


def backbone(**config: Any) -> dict[str, torch.Tensor]:
    return build_encoder(EncoderConfig(width=0.0625, **config)).get_submodule("backbone").state_dict()


def test_pretrained_weights_are_read_once_at_step_0_and_are_all_ranks(
    command: Callable[..., Any], tmp_path: Path
) -> None:
    file = tmp_path / "weights.safetensors"
    given = backbone(stem="cifar")
    save_file(given, file)
    ranks, pretrain_again = command(("interrupted", None), ("interrupted", 1), ("finished", STEPS))
    byol = ["method={name: byol, hidden_dim: 8, embed_dim: 4}", f"encoder.pretrained={file}"]
    stopped, _ = pretrain_again(*byol)
    assert stopped.commit is None
    assert stopped.run.initial_file.exists()
    stopped, _ = pretrain_again(*byol)  # step 0 still: read again
    state = commits.load_state(stopped.commit)
    for network in ("encoder", "teacher.0"):
        assert all(
            torch.equal(state[f"model.{network}.backbone.{key}"], value) for key, value in given.items()
        )
    file.unlink()  # the commit has the weights
    with pytest.raises(UserError, match=r"encoder\.pretrained .*weights\.safetensors -> None"):
        pretrain_again(byol[0])
    finished, _ = pretrain_again(*byol)
    assert finished.status == "finished"
    assert ranks.started == [0, 0, 1]
    assert not finished.run.initial_file.exists()
    with store(tracking_uri()) as client:
        (found,) = client.search_runs([each.experiment_id for each in client.search_experiments()])
    assert len(found.data.params["encoder.pretrained_sha256"]) == 64


def test_pretrained_weights_that_do_not_fit_are_refused_before_anything_starts(
    command: Callable[..., Any], tmp_path: Path
) -> None:
    save_file(backbone(), tmp_path / "w.safetensors")
    ranks, pretrain_again = command()
    with pytest.raises(UserError, match=r"conv1\.weight is 4x3x7x7, needs 4x3x3x3"):
        pretrain_again(f"encoder.pretrained={tmp_path}/w.safetensors")
    assert ranks.sessions == 0


def test_a_stop_that_was_asked_before_training_starts_no_ray(command: Callable[..., Any]) -> None:
    ranks, pretrain_again = command(("finished", STEPS))
    stop = Stop()
    stop.ask()
    stopped, notes = pretrain_again(stop=stop)
    assert (stopped.status, stopped.commit, ranks.sessions, notes) == ("interrupted", None, 0, [])
    assert mlflow_status() == "KILLED"
    finished, _ = pretrain_again()
    assert finished.status == "finished"


def test_a_signal_before_training_ends_the_command_even_if_a_library_swallows_it() -> None:
    stop, said = Stop(), list[str]()
    interrupt = Interrupt(stop, said.append)
    with pytest.raises(KeyboardInterrupt):
        interrupt.handle(signal.SIGINT, None)
    assert (stop.is_asked, said) == (True, [])  # what goes on all the same meets the stop
    with pytest.raises(SystemExit, match="130"):
        interrupt.handle(signal.SIGINT, None)
    stop, passed_on = Stop(), list[bool]()
    interrupt = Interrupt(stop, said.append)
    with stop.heard(lambda: passed_on.append(True)):
        interrupt.handle(signal.SIGTERM, None)
    assert (passed_on, len(said), interrupt.signal) == ([True], 1, signal.SIGTERM)
