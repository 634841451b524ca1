"""The rank loop without Ray: what it skips, when it gives up, and what shuffling BN permutes."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ranks import alone, run_ranks
from shard_files import png, write_shard
from torch import Tensor

from vergence.methods import collectives
from vergence.methods.catalog import METHODS
from vergence.methods.method import Encoder
from vergence.methods.simclr import SimCLR
from vergence.pipelines.recipe import Recipe, build_method
from vergence.pipelines.resolve import data_facts, resolve
from vergence.platform import yaml
from vergence.platform.data.index import open_index
from vergence.platform.runs import commit as commits
from vergence.platform.runs.commit import Commit
from vergence.platform.runs.run import Run, locked
from vergence.platform.train.loop import MAX_SKIPPED_IN_A_ROW, RankLoop
from vergence.platform.train.record import embedding_metrics

RECIPE = """
epochs: 2
precision: fp32
method:   {name: METHOD, SETTINGS}
encoder:  {name: resnet18, stem: cifar, width: 0.0625}
data:     {train: SHARDS, holdout: HOLDOUT}
views:    [{count: 2, size: 8, recipe: simclr-cifar}]
norm:     {group: 4}
batch:    {global: 16}
optim:    {name: sgd, lr: 0.1, per: 16}
"""


@pytest.fixture
def make_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """A loop at step 0 over 40 images, with overrides of the recipe's text; classes: bytes of each .cls, or None."""
    monkeypatch.setenv("VERGENCE_HOME", str(tmp_path / "home"))
    pixels = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), dtype=np.uint8)

    def make(
        method: Any = "simclr",
        extra: Any = "",
        commit: Commit | None = None,
        stops_after: int | None = None,
        holdout: float = 0.0,
        classes: Any = (None,) * 40,
        pause_after: int | None = None,
        settings: str = "hidden_dim: 16, embed_dim: 8",
    ) -> Any:
        samples = [
            {"png": png(p)} | ({} if text is None else {"cls": text}) for p, text in zip(pixels, classes)
        ]
        shard = write_shard(tmp_path / "t-000000.tar", ((f"{i}", sample) for i, sample in enumerate(samples)))
        text = RECIPE.replace("METHOD", method).replace("SHARDS", str(shard)) + extra
        text = text.replace("HOLDOUT", str(holdout)).replace("SETTINGS", settings)
        recipe = Recipe.parse(yaml.parse(text, "recipe"), "recipe")
        index = open_index(shard, tmp_path / "index")
        resolved = resolve(recipe, index, build_method(recipe, data_facts(recipe, index)))
        run = Run("r", attempt="test")
        run.logs.mkdir(parents=True, exist_ok=True)
        stream = resolved.stream
        job = resolved.job(run, {}, pause_after)
        loop = RankLoop(job, commit, lambda: loop.step + 1 == stops_after)
        steps = range(loop.step, resolved.steps)
        shares = (stream.share(step, 0, 1) for step in steps)
        return loop, shares, run

    return make


@alone
def test_a_run_finishes_with_a_commit_at_its_last_step(make_loop: Callable[..., Any]) -> None:
    loop, rows, run = make_loop()
    with locked(run):
        assert loop.run(rows).status == "finished"
    newest = commits.newest(run.commits)
    assert newest.step == 4
    assert newest.manifest["counts"] == {"updates": 4, "skipped": 0, "bad": 0, "bad_in_epoch": 0}
    assert newest.manifest["recipe"]["optim"]["lr"] == 0.1


@alone
def test_a_run_that_pauses_after_an_epoch_goes_on_to_the_same_weights(make_loop: Callable[..., Any]) -> None:
    loop, rows, run = make_loop(holdout=0.2, extra="monitor: {every_epochs: 5}\n")
    with locked(run):
        assert loop.run(rows).status == "finished"
    undisturbed = commits.load_state(commits.newest(run.commits))
    shutil.rmtree(run.path)
    loop, rows, run = make_loop(holdout=0.2, extra="monitor: {every_epochs: 5}\n", pause_after=1)
    with locked(run):
        assert loop.run(rows).status == "paused"
    paused = commits.newest(run.commits)
    assert (paused.step, paused.monitor_due) == (2, False)
    records = [json.loads(line) for line in (run.logs / "metrics.jsonl").read_text().splitlines()]
    assert [record["epoch"] for record in records if record.get("event") == "monitor"] == [1]
    loop, rows, run = make_loop(
        holdout=0.2, extra="monitor: {every_epochs: 5}\n", commit=paused, pause_after=7
    )
    with locked(run):
        assert loop.run(rows).status == "finished"
    state = commits.load_state(commits.newest(run.commits))
    assert all(torch.equal(state[name], undisturbed[name]) for name in undisturbed)


@alone
def test_a_step_that_is_not_finite_changes_nothing_and_counts(
    make_loop: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    loop, rows, _ = make_loop()
    criterion, calls = loop.method.criterion, []

    def sometimes_nan(*arguments: Any) -> Any:
        calls.append(1)
        losses = criterion(*arguments)
        return losses._replace(loss=losses.loss * float("nan")) if len(calls) == 2 else losses

    monkeypatch.setattr(loop.method, "criterion", sometimes_nan)
    states = []
    for row in rows:
        loop._train_step(row, loop._micros(row, loop.step))
        loop.step += 1
        states.append(loop.engine.state())
    assert all(torch.equal(states[1][name], states[0][name]) for name in states[0])
    assert not all(torch.equal(states[2][name], states[1][name]) for name in states[0])
    assert loop.counts["skipped"] == 1
    assert loop.counts["updates"] == 3


@alone
def test_skipping_without_end_stops_the_run_with_the_cure(
    make_loop: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    loop, rows, run = make_loop()
    monkeypatch.setattr("vergence.platform.train.loop.MAX_SKIPPED_IN_A_ROW", 3)
    criterion = loop.method.criterion
    monkeypatch.setattr(
        loop.method,
        "criterion",
        lambda *a: (lambda losses: losses._replace(loss=losses.loss / 0))(criterion(*a)),
    )
    with locked(run):
        outcome = loop.run(rows)
    assert outcome.status == "failed"
    assert "3 steps in a row" in outcome.message
    assert "lower optim.lr" in outcome.message
    assert MAX_SKIPPED_IN_A_ROW == 10


@alone
def test_a_stop_ends_the_loop_after_a_commit(make_loop: Callable[..., Any]) -> None:
    loop, rows, run = make_loop(stops_after=1)
    with locked(run):
        assert loop.run(rows).status == "interrupted"
    assert commits.newest(run.commits).step == 1


def without_time(run: Run) -> list[dict[str, Any]]:
    records = [json.loads(line) for line in (run.logs / "metrics.jsonl").read_text().splitlines()]
    timed = ("time", "images_per_s", "data_wait_share", "stages")
    return [{name: record[name] for name in record if name not in timed} for record in records]


@alone
@pytest.mark.parametrize("stop", [2, 4])
def test_a_stop_at_the_end_of_an_epoch_commits_first_and_evaluates_later(
    make_loop: Callable[..., Any], stop: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop, rows, run = make_loop(holdout=0.1)
    with locked(run):
        loop.run(rows)
        undisturbed = without_time(run)
        scores = [commits.read(path).score for path in sorted(run.commits.glob("step-*"))]
        shutil.rmtree(run.commits)
        loop, rows, _ = make_loop(holdout=0.1, stops_after=stop)
        evaluate, evaluated = loop._evaluate, []

        def noted(epoch: int) -> None:
            evaluated.append(epoch)
            evaluate(epoch)

        monkeypatch.setattr(loop, "_evaluate", noted)
        assert loop.run(rows).status == "interrupted"
        assert evaluated == list(range(1, stop // 2))
        commit = commits.newest(run.commits)
        assert (commit.step, commit.score, commit.monitor_due) == (stop, None, True)
        for _ in range(2):  # as after a kill between record and manifest: evaluated again, recorded once
            again, rest, _ = make_loop(holdout=0.1, commit=commit)
            assert again.run(rest).status == "finished"
    monitored = [record for record in undisturbed if record.get("event") == "monitor"]
    assert [record for record in without_time(run) if record.get("event") == "monitor"] == monitored
    assert commits.read(commit.path).score == scores[stop // 2 - 1]
    assert not commits.read(commit.path).monitor_due


@alone
def test_a_held_out_sample_without_a_class_is_told_and_the_score_stays_the_knn(
    make_loop: Callable[..., Any],
) -> None:
    classes = [(b"cat", b"dog")[i % 2] for i in range(40)]
    held_out = make_loop(holdout=0.25)[0].job.plan.holdout_ids()
    classes[held_out[0]] = None
    loop, rows, run = make_loop(holdout=0.25, classes=classes)
    with locked(run):
        assert loop.run(rows).status == "finished"
    record = [record for record in without_time(run) if record.get("event") == "monitor"][-1]
    assert record["warning"].endswith("kNN over 9 of 10 held-out samples: the others have no class")
    assert commits.newest(run.commits).score == record["knn"]


@alone
def test_a_loop_that_goes_on_from_a_commit_ends_like_one_that_never_stopped(
    make_loop: Callable[..., Any],
) -> None:
    loop, rows, run = make_loop()
    with locked(run):
        loop.run(rows)
        reference = loop.engine.state()
        for path in run.commits.iterdir():
            if path.name > commits.folder_name(2):
                path.rename(path.with_name(f".{path.name}"))
        commit = commits.newest(run.commits)
        again, rest, _ = make_loop(commit=commit)
        again.run(rest)
    state = again.engine.state()
    assert state.keys() == reference.keys()
    assert all(torch.equal(state[name], reference[name]) for name in state)


@alone
def test_shuffles_stay_within_spans_and_follow_the_place_in_the_global_batch(
    make_loop: Callable[..., Any],
) -> None:
    loop, _, _ = make_loop("mocov2", extra="")
    assert loop.layout.norm_span == 16
    shuffle = loop._shuffle(loop.step, 0)
    assert sorted(shuffle.tolist()) == list(range(16))
    assert shuffle.tolist() != list(range(16))
    loop.layout = loop.layout._replace(norm_span=8)
    halves = loop._shuffle(loop.step, 0)
    assert sorted(halves[:8].tolist()) == list(range(8))
    loop.layout = loop.layout._replace(micro=8)
    assert (loop._shuffle(loop.step, 8) + 8).tolist() == halves[8:].tolist()
    loop.step += 1
    assert loop._shuffle(loop.step, 8).tolist() != (halves[8:] - 8).tolist()


def _embedding_metrics(rank: int, world_size: int, z: Tensor) -> tuple[dict[str, float], list[int]]:
    gathered, gather = [], collectives.gather

    def noted(x: Tensor) -> Tensor:
        gathered.append(len(x))
        return gather(x)

    collectives.gather = noted  # in a process of its own
    return embedding_metrics(z.chunk(world_size)[rank].requires_grad_()), gathered


def test_embedding_metrics_gather_only_the_rows_they_use_and_are_told_by_rank_0() -> None:
    z = torch.randn(600, 2, 8, generator=torch.Generator().manual_seed(0))
    ((alone_of_all, rows),) = run_ranks(_embedding_metrics, 1, z)
    assert rows == [256]
    (told, rows), (silent, other_rows) = run_ranks(_embedding_metrics, 2, torch.cat([z[:300], z[128:428]]))
    assert rows == other_rows == [128]
    assert told == alone_of_all  # the first 128 rows of each rank are the first 256 of the one
    assert silent == {}
    few = torch.randn(12, 8, generator=torch.Generator().manual_seed(1))
    assert run_ranks(_embedding_metrics, 2, few)[0][0] == run_ranks(_embedding_metrics, 1, few)[0][0]


class Sweeping(SimCLR):
    """Adds up what it is shown before each epoch: sums of ids and representations, their number, and a draw."""

    def __init__(self, config: Any, encoder: Encoder, data: Any) -> None:
        super().__init__(config, encoder, data)
        self.register_buffer("seen", torch.zeros(data.epochs, 4, dtype=torch.float64))

    def before_epoch(self, epoch: int, sweep: Any) -> tuple[()]:
        ids, h = (torch.cat(parts) for parts in zip(*sweep()))
        assert self.encoder.training
        self.seen[epoch] += torch.tensor([ids.sum(), h.double().sum(), len(h), torch.rand(())])
        return ()


@alone
@pytest.mark.parametrize("stop", [2, 3])  # between two epochs, within one
def test_a_method_sees_the_training_samples_once_before_each_epoch(
    make_loop: Callable[..., Any], stop: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(METHODS, "simclr", (METHODS["simclr"][0], Sweeping))
    loop, rows, run = make_loop(holdout=0.1)
    with locked(run):
        assert loop.run(rows).status == "finished"
        shutil.rmtree(run.commits)
        stopped, rows, _ = make_loop(holdout=0.1, stops_after=stop)
        assert stopped.run(rows).status == "interrupted"
        again, rows, _ = make_loop(holdout=0.1, commit=commits.newest(run.commits))
        assert again.run(rows).status == "finished"
    plan, seen = loop.job.plan, loop.method.seen
    assert seen[:, 0].tolist() == [plan.training_ids(np.arange(plan.num_training)).sum()] * 2
    assert seen[:, 2].tolist() == [plan.num_training] * 2
    assert seen[0, 1] != seen[1, 1]  # by the encoder as it then is
    assert seen[0, 3] != seen[1, 3]
    state, reference = again.engine.state(), loop.engine.state()
    assert all(torch.equal(state[name], reference[name]) for name in reference)


@alone
@pytest.mark.parametrize("stop", [2, 3])  # between two epochs, within one
@pytest.mark.parametrize(
    ("method", "settings", "zero"),
    [
        ("deep_cluster", "clusters: 5, whitened_dim: 4", 1),
        ("deep_cluster_v2", "clusters: 5, hidden_dim: 16, embed_dim: 8", 0),
    ],
)
def test_clusters_and_a_classifier_made_anew_survive_a_resume(
    make_loop: Callable[..., Any], method: str, settings: str, zero: int, stop: int
) -> None:
    def make(**changes: Any) -> Any:
        return make_loop(method, settings=settings, extra=f"scale: {{zero: {zero}}}\n", **changes)

    loop, rows, run = make()
    with locked(run):
        assert loop.run(rows).status == "finished"
        shutil.rmtree(run.commits)
        stopped, rows, _ = make(stops_after=stop)
        assert stopped.run(rows).status == "interrupted"
        again, rows, _ = make(commit=commits.newest(run.commits))
        assert again.run(rows).status == "finished"
    state, reference = again.engine.state(), loop.engine.state()
    assert all(torch.equal(state[name], reference[name]) for name in reference)
    assert (state["model.labels"] >= 0).all()
    if (
        method == "deep_cluster"
    ):  # two steps from a standard deviation of 0.01, not four from the start's weights
        assert state["model.agreed"] > 0
