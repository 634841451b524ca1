"""The promises of a run: interrupted = undisturbed, one lock, nothing done twice."""

import json
import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from runs_for_real import (
    kill_everything,
    start,
    train_workers,
    vergence,
    wait_for_step,
    write_shards,
)

from vergence.platform.runs import commit as commits

Undisturbed = tuple[Path, dict[str, torch.Tensor], str]


@pytest.fixture(scope="module")
def undisturbed(place: Path) -> Undisturbed:
    """A finished run: (state folder, final state, what was said).

    Its current folder holds what must not be imported from there, by the driver or by a worker.
    """
    home, traps = place / "home", place / "traps"
    for name in ("timm/__init__.py", "ray/__init__.py", "deepspeed/__init__.py", "random.py", "csv.py"):
        (traps / name).parent.mkdir(parents=True, exist_ok=True)
        (traps / name).write_text("raise ImportError('imported from the current folder')")
    done = vergence(home, "pretrain", str(place / "tiny.yaml"), cwd=traps)
    assert done.returncode == 0, done.stderr
    return home, final_state(home / "tiny"), done.stderr


def final_state(run: Path) -> dict[str, torch.Tensor]:
    commit = commits.newest(run / "commits")
    assert commit.step == 27
    return commits.load_state(commit)


def assert_bit_equal(state: dict[str, torch.Tensor], reference: dict[str, torch.Tensor]) -> None:
    assert state.keys() == reference.keys()
    different = [name for name in state if not torch.equal(state[name], reference[name])]
    assert not different


def test_first_screen_says_what_runs_where_and_how(
    undisturbed: Undisturbed,
) -> None:
    _, _, said = undisturbed
    for phrase in (
        "576 of 640 samples",
        "64 = 2 workers x 32",
        "27 = 3 epochs x 9",
        "lr 0.025",
        "kept in",
        "mlflow ui",
    ):
        assert phrase in said


def test_finished_run_is_a_quick_no_op(undisturbed: Undisturbed, place: Path) -> None:
    home, state, _ = undisturbed
    begin = time.monotonic()
    again = vergence(home, "pretrain", str(place / "tiny.yaml"))
    assert again.returncode == 0
    assert "finished, nothing to do" in again.stderr
    assert time.monotonic() - begin < 60
    assert json.loads((home / "tiny" / "run.json").read_text())["version"] == 1
    assert_bit_equal(final_state(home / "tiny"), state)


@pytest.mark.slow
def test_a_power_cut_that_left_half_of_every_small_file_costs_a_few_steps(
    undisturbed: Undisturbed, place: Path
) -> None:
    """Facts come back from the newest whole commit: no second MLflow run, no second version, the same weights."""
    from mlflow import MlflowClient

    home, reference, _ = undisturbed
    shutil.copytree(home, place / "cut")
    run = place / "cut" / "tiny"
    before = json.loads((run / "run.json").read_text())
    (run / "lock.json").write_text('{"host": "x", "pid": 12')
    os.truncate(run / "run.json", 0)
    (manifest,) = (run / "commits").glob("step-00000027/manifest.json")
    (index,) = (place / "cut" / "index").glob("*.parquet")
    for path in (run / "recipe.resolved.yaml", manifest, index):
        os.truncate(path, path.stat().st_size // 2)

    changed = vergence(place / "cut", "pretrain", str(place / "tiny.yaml"), "optim.lr=0.3")
    assert changed.returncode == 2
    assert "optim.lr 0.1 -> 0.3" in changed.stderr
    again = vergence(place / "cut", "pretrain", str(place / "tiny.yaml"))
    assert again.returncode == 0, again.stderr
    assert "goes on at step 24" in again.stderr
    assert_bit_equal(final_state(run), reference)
    after = json.loads((run / "run.json").read_text())
    for fact in ("id", "mlflow_run", "version", "data_digest", "precision", "regime", "micro"):
        assert after[fact] == before[fact]
    client = MlflowClient(f"sqlite:///{place / 'cut'}/mlflow.db")
    assert len(client.search_runs([client.get_experiment_by_name("tiny").experiment_id])) == 1
    assert len(client.search_model_versions("name = 'tiny'")) == 1


def test_a_finished_run_whose_shards_are_gone_is_finished(undisturbed: Undisturbed, place: Path) -> None:
    home, _, _ = undisturbed
    (place / "shards").rename(place / "elsewhere")
    try:
        again = vergence(home, "pretrain", str(place / "tiny.yaml"))
        asked = vergence(home, "pretrain", str(place / "tiny.yaml"), f"data.train={place}/others/*.tar")
    finally:
        (place / "elsewhere").rename(place / "shards")
    assert again.returncode == 0, again.stderr
    assert "finished, nothing to do" in again.stderr
    assert asked.returncode == 2  # other data are asked for: whether they are the same cannot be seen


def test_metrics_hold_what_was_promised(undisturbed: Undisturbed) -> None:
    home, _, _ = undisturbed
    lines = [json.loads(line) for line in (home / "tiny" / "logs" / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    assert [line["step"] for line in steps] == list(range(27))
    assert {
        "loss", "lr", "grad_norm", "grad_norm_first", "images_per_s", "data_wait_share", "embedding_std",
        "effective_rank", "updates", "skipped", "bad",
    } <= steps[1].keys()  # fmt: skip
    assert "images_per_s" not in steps[0]  # the start is no part of the speed
    assert steps[0]["lr"] == 0
    assert steps[9]["lr"] == pytest.approx(0.025)
    scores = [line["knn"] for line in lines if line.get("event") == "monitor"]
    assert len(scores) == 3
    assert scores[-1] > 0.5  # chance is .25


def test_every_way_to_stop_goes_on_to_the_same_weights(undisturbed: Undisturbed, place: Path) -> None:
    """SIGTERM, SIGINT, kill -9 of everything, again within a second of the restart."""
    _, reference, _ = undisturbed
    home, log = place / "stopped", place / "stopped.log"
    command = ("pretrain", str(place / "tiny.yaml"))
    run = home / "tiny"
    for number, step, code in ((signal.SIGTERM, 4, 143), (signal.SIGINT, 10, 130)):
        process = start(home, *command, log=log)
        wait_for_step(run, step, process)
        process.send_signal(number)
        assert process.wait(60) == code, log.read_text()
        assert commits.newest(run / "commits").step > step
    process = start(home, *command, log=log)
    wait_for_step(run, 17, process)
    kill_everything(process)
    process = start(home, *command, log=log)
    time.sleep(0.7)
    kill_everything(process)
    process = start(home, *command, log=log)
    assert process.wait(240) == 0, log.read_text()
    assert "goes on at step 1" in log.read_text()
    assert_bit_equal(final_state(run), reference)


def test_a_killed_worker_is_replaced_and_the_weights_are_the_same(
    undisturbed: Undisturbed, place: Path
) -> None:
    _, reference, _ = undisturbed
    home, log = place / "worker", place / "worker.log"
    process = start(home, "pretrain", str(place / "tiny.yaml"), log=log)
    wait_for_step(home / "tiny", 13, process)
    workers = train_workers(process)
    assert len(workers) == 2
    workers[1].send_signal(signal.SIGKILL)
    assert process.wait(240) == 0, log.read_text()
    assert_bit_equal(final_state(home / "tiny"), reference)


def test_one_worker_sees_the_same_and_learns_the_same(undisturbed: Undisturbed, place: Path) -> None:
    """fp32 rounding differs, nothing else: after one epoch the weights agree closely."""
    home, _, _ = undisturbed
    one = vergence(
        place / "one",
        "pretrain",
        str(place / "tiny.yaml"),
        "scale.workers=1",
        "batch.micro=32",
        "track.register=null",
    )
    assert one.returncode == 0, one.stderr
    losses = [
        [
            json.loads(line)["loss"]
            for line in (path / "tiny/logs/metrics.jsonl").read_text().splitlines()
            if '"loss"' in line
        ]
        for path in (home, place / "one")
    ]
    np.testing.assert_allclose(losses[0][:9], losses[1][:9], rtol=1e-3)


def test_a_second_process_on_a_live_run_is_refused_by_name(undisturbed: Undisturbed, place: Path) -> None:
    home, log = place / "live", place / "live.log"
    process = start(home, "pretrain", str(place / "tiny.yaml"), log=log)
    try:
        while not (home / "tiny" / "lock.json").exists():
            time.sleep(0.05)
        second = vergence(home, "pretrain", str(place / "tiny.yaml"))
        assert second.returncode == 2
        assert f"process {process.pid} on" in second.stderr
        assert "Traceback" not in second.stderr
    finally:
        kill_everything(process)


def test_resume_with_another_recipe_or_other_data_is_refused(undisturbed: Undisturbed, place: Path) -> None:
    home, _, _ = undisturbed
    other = vergence(home, "pretrain", str(place / "tiny.yaml"), "optim.lr=0.3", "method.temperature=0.5")
    assert other.returncode == 2
    assert "method.temperature 0.2 -> 0.5, optim.lr 0.1 -> 0.3" in other.stderr
    shards = write_shards(place / "others", broken=(7,))
    data = vergence(home, "pretrain", str(place / "tiny.yaml"), f"data.train={shards}")
    assert data.returncode == 2
    assert "was started on other data" in data.stderr
    operational = vergence(
        home, "pretrain", str(place / "tiny.yaml"), "commit.every_steps=7", "scale.workers=1"
    )
    assert operational.returncode == 0, operational.stderr


@pytest.mark.slow
def test_a_mistake_found_before_the_first_commit_may_be_corrected(place: Path) -> None:
    home = place / "corrected"
    command = ("pretrain", str(place / "tiny.yaml"), "epochs=1", "track.register=null")
    log = place / "corrected.log"
    process = start(home, *command, "optim.lr=3.0", log=log)
    while not (home / "tiny" / "recipe.resolved.yaml").exists():
        time.sleep(0.05)
    kill_everything(process)
    assert commits.newest(home / "tiny" / "commits") is None
    corrected = vergence(home, *command)
    assert corrected.returncode == 0, corrected.stderr


@pytest.mark.slow
def test_fork_starts_anew_from_the_newest_state(undisturbed: Undisturbed, place: Path) -> None:
    home, state, _ = undisturbed
    forked = vergence(
        home, "pretrain", str(place / "tiny.yaml"), "epochs=1", "optim.lr=1e-9", "schedule.warmup_epochs=0",
        "optim.weight_decay=0", "track.register=null", "--name", "tiny", "--fork", "second",
    )  # fmt: skip
    assert forked.returncode == 0, forked.stderr
    assert "run second (forked from tiny at step 27)" in forked.stderr
    commit = commits.newest(home / "second" / "commits")
    assert commit.step == 9
    weights = commits.load_state(commit)["model.encoder.backbone.conv1.weight"]
    torch.testing.assert_close(weights, state["model.encoder.backbone.conv1.weight"], rtol=0, atol=1e-6)
    old, new = (json.loads((home / name / "run.json").read_text()) for name in ("tiny", "second"))
    assert not {new["id"], new["mlflow_run"]} & {old["id"], old["mlflow_run"]}
    other = vergence(
        home, "pretrain", str(place / "tiny.yaml"), "optim.name=adamw", "--name", "tiny", "--fork", "third"
    )
    assert other.returncode == 2
    assert "it lacks optim.encoder.backbone" in other.stderr
