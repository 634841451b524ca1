"""A run that is killed in every way that we know ends bit for bit like one that was left alone.

    python tests/kill_campaign.py [--faults 30] [--seed 0] [--folder FOLDER]

MoCo v2 (queue, teacher, shuffling BN) at ZeRO stage 2 on 2 workers in fp32, on real Ray, with real signals at
random moments. Then: the same weights, queue and optimiser state; each metric row once, in the file and in
MLflow; one registered version; no process left. Exit code 1 if any of it does not hold.
"""

import argparse
import contextlib
import io
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
from PIL import Image
from runs_for_real import family, kill_everything, start, steps, train_workers, vergence
from shard_files import write_shard

RECIPE = """
seed: 5
epochs: EPOCHS
precision: fp32
method:   {name: mocov2, hidden_dim: 32, embed_dim: 16, queue_size: 256, momentum: 0.99}
encoder:  {name: resnet18, stem: cifar, width: 0.0625}
data:     {train: SHARDS, holdout: 0.1}
views:    [{count: 2, size: 16, recipe: mocov2-cifar}]
norm:     {group: 16}
batch:    {global: 64, micro: 16}
optim:    {name: adamw, lr: 0.001}
scale:    {workers: 2, zero: 2, max_failures: 100}
commit:   {every_steps: 10, keep: 3}
track:    {experiment: campaign, register: campaign, every_steps: 1}
"""
NUM_IMAGES, EPOCHS = 1000, 110
READY_S = 600.0  # within which a started command must take a new step


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--faults", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="keep everything there")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        return campaign(options.folder or Path(temporary), options.faults, random.Random(options.seed))


def campaign(folder: Path, num_faults: int, draw: random.Random) -> int:
    recipe = write_recipe(folder)
    begin = time.monotonic()
    done = vergence(folder / "alone", "pretrain", str(recipe), timeout_s=1200)
    assert done.returncode == 0, done.stderr
    print(f"undisturbed: {time.monotonic() - begin:.0f} s")
    run = Victim(folder, recipe)
    faults = [list(FAULTS)[i % len(FAULTS)] for i in range(num_faults)]
    draw.shuffle(faults)
    for number, name in enumerate(faults, 1):
        FAULTS[name](run, draw)
        print(f"{number:3d}/{num_faults} {name}: step {run.step()} after {time.monotonic() - begin:.0f} s")
    run.ensure_started()
    code = run.process.wait(1200)
    wrong = [] if code == 0 else [f"the last command ended with {code}: {run.log.read_text()[-500:]}"]
    wrong += differences(folder / "alone" / "campaign", folder / "killed" / "campaign")
    wrong += repeated(folder / "killed") + left_over(folder / "killed")
    print("\n".join(wrong) or f"{num_faults} faults, and nothing differs from the undisturbed run")
    return 1 if wrong else 0


def write_recipe(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(0)

    def picture(label: int) -> bytes:
        wave = np.sin(np.arange(16) * (0.3 + 0.3 * label))[:, None, None] * 60 + 128
        pixels = np.clip(wave + draw.normal(0, 30, (16, 16, 3)), 0, 255).astype(np.uint8)
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        return file.getvalue()

    samples = ((f"{i:05d}", {"png": picture(i % 4), "cls": b"%d" % (i % 4)}) for i in range(NUM_IMAGES))
    shard = write_shard(folder / "shards" / "train-000000.tar", samples)
    recipe = folder / "campaign.yaml"
    recipe.write_text(RECIPE.replace("SHARDS", str(shard)).replace("EPOCHS", str(EPOCHS)))
    return recipe


class Victim:
    """The run that is killed; the same command is given again after each end."""

    def __init__(self, folder: Path, recipe: Path) -> None:
        self.home, self.log, self.recipe = folder / "killed", folder / "killed.log", recipe
        self.folder = self.home / "campaign"
        self.process: subprocess.Popen | None = None

    def step(self) -> int:
        return max(steps(self.folder), default=-1)

    def start(self) -> None:
        self.process = start(self.home, "pretrain", str(self.recipe), log=self.log)

    def ensure_started(self) -> None:
        if self.process is None or self.process.poll() is not None:
            assert self.process is None or self.process.returncode != 2, self.log.read_text()[-500:]
            self.start()

    def training(self, draw: random.Random) -> subprocess.Popen:
        """The process, a moment after it has taken a step that was not there before."""
        before, deadline = self.step(), time.monotonic() + READY_S
        self.ensure_started()
        while self.step() <= before:
            self.ensure_started()  # what the last fault did may end the command a little later
            assert time.monotonic() < deadline, f"no step in {READY_S:g} s: {self.log.read_text()[-800:]}"
            time.sleep(0.05)
        time.sleep(draw.uniform(0, 2))
        assert self.process is not None
        return self.process

    def named(self, name: str) -> list[psutil.Process]:
        """Processes of this run whose command line holds `name`."""
        found = []
        for member in family(self.process) if self.process.poll() is None else []:
            with contextlib.suppress(psutil.Error):
                if name in " ".join(member.cmdline()):
                    found.append(member)
        return found

    def kill(self, members: list[psutil.Process]) -> None:
        for member in members:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()


def kill_all(run: Victim, draw: random.Random) -> None:
    kill_everything(run.training(draw))


def kill_driver(run: Victim, draw: random.Random) -> None:
    process = run.training(draw)
    process.kill()
    process.wait()


def kill_rank(run: Victim, draw: random.Random) -> None:
    if workers := train_workers(run.training(draw)):
        run.kill([draw.choice(workers)])


def kill_reader(run: Victim, draw: random.Random) -> None:
    """Worker processes of Ray Data's tasks; idle ones count, they are the same processes."""
    run.training(draw)
    run.kill(run.named("ray::MapBatches") or run.named("ray::IDLE"))


def kill_raylet(run: Victim, draw: random.Random) -> None:
    run.training(draw)
    run.kill(run.named("raylet/raylet"))
    wait_for_end(run)


def kill_gcs(run: Victim, draw: random.Random) -> None:
    run.training(draw)
    run.kill(run.named("gcs_server"))
    wait_for_end(run)


def kill_in_commit(run: Victim, draw: random.Random) -> None:
    process, deadline = run.training(draw), time.monotonic() + 20
    while not list((run.folder / "commits").glob(".step-*")) and time.monotonic() < deadline:
        pass  # a draft lives for some milliseconds
    kill_everything(process)


def kill_at_start(run: Victim, draw: random.Random) -> None:
    if run.process is not None and run.process.poll() is None:
        kill_everything(run.process)
    run.start()
    time.sleep(draw.uniform(0.2, 15))
    if run.process.poll() is None:
        kill_everything(run.process)


def stop_by(number: signal.Signals) -> Callable[[Victim, random.Random], None]:
    def stop(run: Victim, draw: random.Random) -> None:
        process = run.training(draw)
        process.send_signal(number)
        assert process.wait(120) == 128 + number, run.log.read_text()[-500:]

    return stop


def freeze(run: Victim, draw: random.Random) -> None:
    """One rank stands still for ten seconds."""
    workers = train_workers(run.training(draw))
    if workers:
        chosen = draw.choice(workers)
        with contextlib.suppress(psutil.NoSuchProcess):
            chosen.suspend()
            time.sleep(10)
            chosen.resume()


def wait_for_end(run: Victim) -> None:
    """Without its Ray the command ends by itself; else it is helped, as a user would."""
    try:
        run.process.wait(90)
    except subprocess.TimeoutExpired:
        kill_everything(run.process)


FAULTS: dict[str, Callable[[Victim, random.Random], None]] = {
    "kill -9 of everything": kill_all,
    "kill -9 of the driver": kill_driver,
    "kill -9 of a rank": kill_rank,
    "kill -9 of the readers": kill_reader,
    "kill -9 of the raylet": kill_raylet,
    "kill -9 of the GCS": kill_gcs,
    "kill -9 in a commit": kill_in_commit,
    "kill -9 soon after the start": kill_at_start,
    "SIGTERM": stop_by(signal.SIGTERM),
    "SIGINT": stop_by(signal.SIGINT),
    "SIGSTOP for 10 s": freeze,
}


def differences(alone: Path, killed: Path) -> list[str]:
    """What differs between the last commits of two runs."""
    import torch

    from vergence.platform.runs import commit as commits

    one, other = commits.newest(alone / "commits"), commits.newest(killed / "commits")
    if one.step != other.step:
        return [f"last steps {one.step} and {other.step}"]
    states = commits.load_state(one), commits.load_state(other)
    names = states[0].keys() | states[1].keys()
    unequal = [
        name
        for name in sorted(names)
        if not all(name in state for state in states) or not torch.equal(states[0][name], states[1][name])
    ]
    return [f"{len(unequal)} of {len(names)} tensors differ: {', '.join(unequal[:5])}"] if unequal else []


def repeated(home: Path) -> list[str]:
    """Rows that are missing or come twice, in the file and in MLflow; and versions."""
    from mlflow import MlflowClient

    lines = [json.loads(line) for line in (home / "campaign/logs/metrics.jsonl").read_text().splitlines()]
    rows = Counter((line["step"], line.get("event")) for line in lines if line.get("event") != "first_step")
    wrong = [f"row {row} comes {count} times" for row, count in rows.items() if count > 1]
    last = max(step for step, _ in rows)
    wrong += [f"row of step {step} is missing" for step in range(last) if (step, None) not in rows]
    client = MlflowClient(f"sqlite:///{home}/mlflow.db")
    experiment = client.get_experiment_by_name("campaign")
    runs = client.search_runs([experiment.experiment_id])
    if len(runs) != 1:
        wrong.append(f"{len(runs)} MLflow runs")
    sent = Counter(metric.step for metric in client.get_metric_history(runs[0].info.run_id, "loss"))
    if sorted(sent) != list(range(last + 1)) or set(sent.values()) != {1}:
        twice = [step for step, count in sent.items() if count > 1]
        wrong.append(f"MLflow has {len(sent)} of {last + 1} steps, twice: {twice[:10]}")
    versions = client.search_model_versions("name = 'campaign'")
    if len(versions) != 1:
        wrong.append(f"{len(versions)} registered versions")
    return wrong


def left_over(home: Path) -> list[str]:
    """Processes of the run that are still there, ten seconds after its end."""
    time.sleep(10)
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.pid != os.getpid() and process.environ().get("VERGENCE_HOME") == str(home):
                found.append(f"process {process.pid} is left: {' '.join(process.cmdline())[:100]}")
    return found


if __name__ == "__main__":
    sys.exit(main())
