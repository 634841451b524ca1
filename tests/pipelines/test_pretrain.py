"""The promises of a run: interrupted = undisturbed, one lock, nothing lost, clear refusals."""

import importlib
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from mlflow_stores import Refusing
from PIL import Image
from runs_for_real import TINY, environment, kill_everything, start, train_workers, vergence, wait_for_step

from vergence.pipelines import cli
from vergence.platform import yaml
from vergence.platform.runs import commit as commits
from vergence.platform.runs.fork import fork
from vergence.platform.runs.run import Run

ROOT = Path(__file__).resolve().parent.parent.parent
NUM_IMAGES = 640  # 576 train: 9 steps an epoch of 64, 27 in all


def write_shards(folder: Path, broken: tuple[int, ...] = ()) -> str:
    """Two tars of 32-px images of four kinds of stripes; `broken` ones are cut off."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for shard in range(2):
        with tarfile.open(folder / f"train-{shard:06d}.tar", "w") as tar:
            for i in range(shard * NUM_IMAGES // 2, (shard + 1) * NUM_IMAGES // 2):
                label = i % 4
                wave = np.sin(np.arange(32) * (0.3 + 0.3 * label))[:, None, None] * 60 + 128
                pixels = np.clip(wave + generator.normal(0, 30, (32, 32, 3)), 0, 255).astype(np.uint8)
                stream = io.BytesIO()
                Image.fromarray(pixels).save(stream, "JPEG", quality=90)
                data = stream.getvalue()
                for extension, content in (
                    ("jpg", data[:200] if i in broken else data),
                    ("cls", b"%d" % label),
                ):
                    info = tarfile.TarInfo(f"{i:05d}.{extension}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    return f"{folder}/train-*.tar"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with shards and a recipe."""
    folder = tmp_path_factory.mktemp("pretrain")
    shards = write_shards(folder / "shards")
    (folder / "tiny.yaml").write_text(TINY.replace("SHARDS", json.dumps(shards)))
    return folder


@pytest.fixture(scope="module")
def undisturbed(place):
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


def assert_bit_equal(state, reference):
    assert state.keys() == reference.keys()
    different = [name for name in state if not torch.equal(state[name], reference[name])]
    assert not different


def test_first_screen_says_what_runs_where_and_how(undisturbed):
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


def test_finished_run_is_a_quick_no_op(undisturbed, place):
    home, state, _ = undisturbed
    begin = time.monotonic()
    again = vergence(home, "pretrain", str(place / "tiny.yaml"))
    assert again.returncode == 0
    assert "finished, nothing to do" in again.stderr
    assert time.monotonic() - begin < 60
    assert json.loads((home / "tiny" / "run.json").read_text())["version"] == 1
    assert_bit_equal(final_state(home / "tiny"), state)


def test_a_power_cut_that_left_half_of_every_small_file_costs_a_few_steps(undisturbed, place):
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


def test_a_finished_run_whose_shards_are_gone_is_finished(undisturbed, place):
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


def test_metrics_hold_what_was_promised(undisturbed):
    home, _, _ = undisturbed
    lines = [json.loads(line) for line in (home / "tiny" / "logs" / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    assert [line["step"] for line in steps] == list(range(27))
    assert {
        "loss", "lr", "grad_norm", "grad_norm_first", "images_per_s", "data_wait_share", "embedding_std",
        "effective_rank", "updates", "skipped", "bad",
    } <= steps[0].keys()  # fmt: skip
    assert steps[0]["lr"] == 0
    assert steps[9]["lr"] == pytest.approx(0.025)
    scores = [line["knn"] for line in lines if line.get("event") == "monitor"]
    assert len(scores) == 3
    assert scores[-1] > 0.5  # chance is .25


def test_every_way_to_stop_goes_on_to_the_same_weights(undisturbed, place):
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


def test_a_killed_worker_is_replaced_and_the_weights_are_the_same(undisturbed, place):
    _, reference, _ = undisturbed
    home, log = place / "worker", place / "worker.log"
    process = start(home, "pretrain", str(place / "tiny.yaml"), log=log)
    wait_for_step(home / "tiny", 13, process)
    workers = train_workers(process)
    assert len(workers) == 2
    workers[1].send_signal(signal.SIGKILL)
    assert process.wait(240) == 0, log.read_text()
    assert_bit_equal(final_state(home / "tiny"), reference)


def test_one_worker_sees_the_same_and_learns_the_same(undisturbed, place):
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


def test_a_second_process_on_a_live_run_is_refused_by_name(undisturbed, place):
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


def test_resume_with_another_recipe_or_other_data_is_refused(undisturbed, place):
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


def test_a_mistake_found_before_the_first_commit_may_be_corrected(place):
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


def test_fork_starts_anew_from_the_newest_state(undisturbed, place):
    home, state, _ = undisturbed
    forked = vergence(
        home, "pretrain", str(place / "tiny.yaml"), "epochs=1", "optim.lr=1e-9", "schedule.warmup_epochs=0",
        "optim.weight_decay=0", "track.register=null", "--name", "tiny", "--fork", "second",
    )  # fmt: skip
    assert forked.returncode == 0, forked.stderr
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


def test_truncated_jpegs_are_replaced_counted_and_named(place):
    shards = write_shards(place / "broken", broken=(5, 17))
    home = place / "bad"
    done = vergence(
        home, "pretrain", str(place / "tiny.yaml"), f"data.train={shards}", "epochs=1", "track.register=null"
    )
    assert done.returncode == 0, done.stderr
    assert commits.newest(home / "tiny" / "commits").manifest["counts"]["bad"] == 2
    assert "2 unreadable samples were replaced" in done.stderr
    logs = "".join(path.read_text() for path in (home / "tiny" / "logs").glob("rank-*.log"))
    assert "train-000000.tar:00005" in logs
    too_many = vergence(
        place / "bad2", "pretrain", str(place / "tiny.yaml"), f"data.train={shards}", "data.max_bad=0.001"
    )
    assert too_many.returncode == 1
    assert "raise data.max_bad" in too_many.stderr
    assert "Traceback" not in too_many.stderr


def test_a_full_disk_stops_the_run_and_leaves_the_last_commit(place, small_disk):
    """The commits folder is a tmpfs with room for two commits and no third."""
    home = place / "full"
    folder = small_disk(home / "tiny" / "commits")
    (folder / "ballast").write_bytes(bytes(600 << 10))
    full = vergence(home, "pretrain", str(place / "tiny.yaml"), "commit.keep=9", "track.register=null")
    assert full.returncode == 1
    assert "No space left on device" in full.stderr
    assert "Traceback" not in full.stderr
    assert commits.newest(folder).step == int(re.search(r"commit at step (\d+) failed", full.stderr)[1]) - 3


def attempts(run: Path) -> int:
    """How often the ranks were started."""
    logs = "".join(path.read_text() for path in (run / "logs").glob("rank-*.log"))
    return logs.count("rank 0 of 2")


def test_a_disk_that_fills_up_with_metrics_is_told_after_one_attempt(place, small_disk):
    home = place / "full-logs"
    logs = small_disk(home / "tiny" / "logs")
    (logs / "ballast").write_bytes(bytes((1 << 20) - (16 << 10)))
    full = vergence(home, "pretrain", str(place / "tiny.yaml"), "track.register=null")
    assert full.returncode == 1, full.stderr
    assert full.stderr.count("No space left on device") == 1
    assert "Traceback" not in full.stderr
    assert attempts(home / "tiny") == 1


def test_a_shard_that_is_cut_off_during_the_run_is_told_after_one_attempt(place):
    """By the reader tasks, whichever rank they work for."""
    shards, home, log = write_shards(place / "shrunk"), place / "shrunk-home", place / "shrunk.log"
    process = start(
        home, "pretrain", str(place / "tiny.yaml"), f"data.train={shards}", "epochs=1000", log=log
    )
    wait_for_step(home / "tiny", 1, process)
    for path in (place / "shrunk").glob("*.tar"):
        os.truncate(path, 4096)
    assert process.wait(120) == 1, log.read_text()
    said = log.read_text()
    assert "it has changed during the run" in said.strip().splitlines()[-1]
    assert "Traceback" not in said
    assert attempts(home / "tiny") == 1
    assert commits.newest(home / "tiny" / "commits") is not None


def test_an_mlflow_server_that_does_not_answer_stops_nothing(place):
    """When it is back, the version belongs to the run of the metrics; the whole folder can be moved then.

    The name of the state folder means something in an address, and the server's address holds a secret.
    """
    home, secret = place / "a b%2Fc%20d?e#fü", "s3cret-pa55"
    address = f"http://user:{secret}@127.0.0.1:9/?token={secret}"
    command = ("pretrain", str(place / "tiny.yaml"), "epochs=1")
    away = vergence(home, *command, MLFLOW_TRACKING_URI=address)
    assert away.returncode == 1
    assert "MLflow at http://***@127.0.0.1:9/?token=*** does not answer; training goes on" in away.stderr
    assert "trained and exported" in away.stderr
    assert (home / "tiny" / "exports" / "encoder.pt2").exists()
    assert secret not in away.stdout + away.stderr
    assert all(secret.encode() not in path.read_bytes() for path in home.rglob("*") if path.is_file())
    back = vergence(home, *command)
    assert back.returncode == 0, back.stderr
    moved = home.rename(place / "moved")
    facts = json.loads((moved / "tiny" / "run.json").read_text())
    assert facts["finished"]
    assert facts["version"] == 1
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{moved}/mlflow.db")
    assert client.get_model_version("tiny", "1").run_id == facts["mlflow_run"]
    assert {experiment.name for experiment in client.search_experiments()} == {"Default", "tiny"}
    history = client.get_metric_history(facts["mlflow_run"], "loss")
    assert [metric.step for metric in history] == list(range(9))
    shards = [str(place / "shards" / f"train-{i:06d}.tar") for i in range(2)]
    evaluated = vergence(
        moved, "evaluate", "models:/tiny@champion", "--train", shards[0], "--test", shards[1]
    )
    assert evaluated.returncode == 0, evaluated.stderr
    assert "tiny/1" in evaluated.stdout


def test_a_store_that_refuses_ends_the_command_before_the_first_step(place):
    home = place / "refused"
    with Refusing(403, "You shall not pass\nat all") as server:
        address = f"http://user:s3cret-pa55@127.0.0.1:{server.port}"
        refused = vergence(home, "pretrain", str(place / "tiny.yaml"), MLFLOW_TRACKING_URI=address)
    assert refused.returncode == 2
    assert (
        f"MLflow at http://***@127.0.0.1:{server.port} refuses: HTTP 403 Forbidden: You shall not pass; check"
        in refused.stderr
    )
    assert refused.stderr.count("refuses") == 1
    assert not (home / "tiny" / "logs" / "metrics.jsonl").exists()


CALLER = """
import os, re, signal, sys, threading, time
from pathlib import Path
import ray

ray.init(
    address="local", num_cpus=3, include_dashboard=False, log_to_driver=False, logging_level="error",
    object_store_memory=300 << 20,
)

@ray.remote(num_cpus=2)
class Holder:
    def ready(self):
        return True

notebook, recipe, train, test, release = sys.argv[1:]
text = Path(notebook).read_text().replace("simclr-cifar10", recipe).replace("cifar10/train-*.tar", train)
text = text.replace("cifar10/test-*.tar", test).replace("data.train={train}", "epochs=8")
training, going_on, using = re.findall("```python\\n(.*?)```", text, re.DOTALL)
training = training.replace("losses.append(", "event.step == 3 and stop.ask(); losses.append(")

holder, mine, cells = Holder.remote(), ray.put("mine"), {}
ray.get(holder.ready.remote())
handlers = {number: signal.getsignal(number) for number in signal.valid_signals()}
environment = dict(os.environ)

def on_a_thread(*codes):
    thread = threading.Thread(target=lambda: [exec(code, cells) for code in codes])
    thread.start()
    return thread

first = on_a_thread(training)
while not os.path.exists(release):
    time.sleep(0.1)
ray.kill(holder)
first.join()
stopped = cells["result"]
assert stopped.status == "interrupted", stopped
assert 4 <= stopped.commit.step < 72, stopped
on_a_thread(going_on).join()
result = cells["result"]
assert (result.status, result.commit.step, result.version) == ("finished", 72, 1), result
assert result.score == result.commit.score > 0.25
steps = [step for step, _ in cells["losses"]]
assert steps == list(range(72)), steps
exec(using, cells)
assert cells["report"].encoder.dim == cells["encoder"].dim
assert cells["classifier"].num_classes == 10

assert {number: signal.getsignal(number) for number in signal.valid_signals()} == handlers
left = dict(os.environ.items() ^ environment.items())
assert left.keys() <= {"LD_LIBRARY_PATH", "TORCHINDUCTOR_CACHE_DIR"}, left  # of importing cv2, and torch.export
assert ray.get(mine) == "mine"  # the session is the same one
print("still open", ray.is_initialized())
"""


def test_a_notebook_trains_twice_off_the_main_thread_in_its_own_session_and_finds_everything_as_it_was(place):
    """The code of docs/notebook.md: stopped by a stop object with a commit, gone on with; others hold CPUs at first."""
    home, log, release = place / "caller", place / "caller.log", place / "release"
    recipe = place / "notebook.yaml"
    recipe.write_text((place / "tiny.yaml").read_text().replace("{workers: 2}", "{workers: 1}"))
    shards = [str(place / "shards" / f"train-{number:06d}.tar") for number in range(2)]
    command = [
        sys.executable,
        "-c",
        CALLER,
        str(ROOT / "docs" / "notebook.md"),
        str(recipe),
        *shards,
        str(release),
    ]
    with log.open("w") as file:
        process = subprocess.Popen(
            command, env=environment(home), stdout=file, stderr=file, start_new_session=True
        )
    try:
        deadline = time.monotonic() + 120
        while "waiting for Ray" not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        release.touch()
        assert process.wait(240) == 0, log.read_text()
    finally:
        if process.poll() is None:
            kill_everything(process)
    said = log.read_text()
    assert (
        "others hold what this run needs: 1 workers x 1 CPUs + 1 readers x 1 CPUs = 2 CPUs, got 1 free"
        in said
    )
    assert "still open True" in said


def test_a_cluster_that_does_not_answer_is_one_line_within_15_s(place, capsys, monkeypatch):
    monkeypatch.setenv("VERGENCE_HOME", str(place / "unreachable"))
    importlib.import_module(
        "vergence.pipelines.advance"
    )  # the imports on a busy machine are not what is measured
    with socket.create_server(("0.0.0.0", 0)) as silent:  # takes connections and says nothing
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{silent.getsockname()[1]}")
        begin = time.monotonic()
        assert cli.main(["pretrain", str(place / "tiny.yaml")]) == 2
    assert time.monotonic() - begin < 15
    said = capsys.readouterr().err.strip().splitlines()
    lines = [line for line in said if not line.startswith("scanning shards: ")]  # told on a slow machine
    assert len(lines) == 1
    assert "no Ray cluster answers there (no answer within 5 s)" in lines[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["method.temprature=0.1"], "method.temprature is not a setting (did you mean temperature?"),
        (["batch.globl=64"], "batch.globl is not a setting (did you mean global?"),
        (["epochs=three"], "epochs: input should be a valid integer"),
        (["method.name=simcrl"], "did you mean simclr?"),
        (["scale.workers=3"], "64 does not divide by 3 workers; nearest: 63, 66"),
        (["batch.micro=24"], "batch.micro 24 does not divide a worker's share of 32 samples"),
        (["norm.group=24"], "norm.group 24 does not divide"),
        (["batch.global=640", "scale.workers=1"], "576"),
        (["scale.workers=64"], "this machine has"),
        (["scale.gpus_per_worker=1"], "GPU"),
        (["scale.zero=3"], "stage 3"),
        (["optim.name=lars", "scale.zero=1"], "lars"),
        (["data.train=nowhere/*.tar"], "nowhere/*.tar"),
        (["epochs"], "not an override"),
        (["encoder.name=resnet19"], "resnet"),
        (["views.0.recipe=simclr-cifr"], "simclr-cifar"),
        (
            ["views.0.count=1"],
            "simclr takes at least 2 views of one size, then any number of smaller ones, got 1 x 32",
        ),
        (
            [
                "encoder.name=vit_tiny_patch16_224",
                "encoder.stem=default",
                "encoder.width=1.0",
                "views.0.size=30",
            ],
            "simclr on vit_tiny_patch16_224 cannot take views of 30, 30 pixels",
        ),
        (["optim.groups=[{match: predictor.*}]"], "fits no trainable parameter"),
        (["schedule.warmup_epochs=4"], "schedule.warmup_epochs=4 is longer than the run of 3 epochs"),
    ],
)
def test_mistakes_are_one_line_that_names_the_place(place, arguments, message, capsys, monkeypatch):
    monkeypatch.setenv("VERGENCE_HOME", str(place / "mistakes"))
    assert cli.main(["pretrain", str(place / "tiny.yaml"), *arguments, "--dry-run"]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    lines = [line for line in said if not line.startswith("scanning shards: ")]  # told on a slow machine
    assert len(lines) == 1
    assert message in lines[0]


def test_unknown_recipe_names_the_nearest(capsys):
    assert cli.main(["pretrain", "simclr-cifar"]) == 2
    said = capsys.readouterr().err
    assert "did you mean simclr-cifar10?" in said
    assert len(said.strip().splitlines()) == 1


def test_dry_run_prints_the_resolved_recipe_and_runs_nothing(place, capsys, monkeypatch):
    monkeypatch.setenv("VERGENCE_HOME", str(place / "dry"))
    assert cli.main(["pretrain", str(place / "tiny.yaml"), "--dry-run"]) == 0
    said = capsys.readouterr()
    assert yaml.parse(said.out, "stdout")["optim"]["momentum"] == 0.9
    assert "MB a worker" in said.err
    assert not (place / "dry" / "tiny").exists()


def test_a_run_begun_under_another_holdout_rule_is_refused_and_may_be_forked(place, capsys, monkeypatch):
    """It would train on what it held out; without a holdout there is no such thing."""
    monkeypatch.setenv("VERGENCE_HOME", str(place / "another-rule"))
    command = ["pretrain", str(place / "tiny.yaml"), "--dry-run"]
    for name in ("old", "without"):
        (place / "another-rule" / name).mkdir(parents=True)
        manifest = {"step": 3, "score": None, "counts": {}}  # of a commit before there were rules
        commits.write(
            place / "another-rule" / name / "commits", {"w": torch.zeros(1)}, manifest, "a", lambda: True
        )
    assert cli.main([*command, "--name", "old"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "run old was begun" in line
    assert "--fork NEW" in line
    assert cli.main([*command, "data.holdout=0", "--name", "without"]) == 0
    fork(Run("old"), Run("new"))
    assert cli.main([*command, "--name", "new"]) == 0
