"""Run `vergence` as a user does: real processes, real signals, real Ray."""

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

TINY = """
seed: 3
epochs: 3
precision: fp32
method:   {name: simclr, temperature: 0.2, hidden_dim: 32, embed_dim: 16}
encoder:  {name: resnet18, stem: cifar, width: 0.0625}
data:     {train: SHARDS, holdout: 0.1}
views:    [{count: 2, size: 32, recipe: simclr-cifar}]
norm:     {group: 16}
batch:    {global: 64}
optim:    {name: sgd, lr: 0.1}
schedule: {warmup_epochs: 1}
scale:    {workers: 2}
commit:   {every_steps: 3, keep: 2}
track:    {experiment: tiny, register: tiny, every_steps: 1}
"""
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


def environment(home: Path, **extra: str) -> dict[str, str]:
    return {**os.environ, "VERGENCE_HOME": str(home), **extra}


def vergence(
    home: Path, *arguments: str, timeout_s: float = 240, cwd: Path | None = None, **extra: str
) -> subprocess.CompletedProcess:
    """One command to its end."""
    return subprocess.run(
        [sys.executable, "-m", "vergence.pipelines.cli", *arguments],
        env=environment(home, **extra),
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


def start(home: Path, *arguments: str, log: Path, **extra: str) -> subprocess.Popen:
    """A command in a session of its own, its output appended to `log`."""
    with log.open("a") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "vergence.pipelines.cli", *arguments],
            env=environment(home, **extra),
            stdout=file,
            stderr=file,
            start_new_session=True,
        )


def steps(run: Path) -> list[int]:
    """Steps that metrics.jsonl has."""
    try:
        lines = (run / "logs" / "metrics.jsonl").read_text().splitlines()
    except FileNotFoundError:
        return []
    found = []
    for line in lines:
        with contextlib.suppress(ValueError):
            found.append(json.loads(line)["step"])
    return found


def wait_for_step(run: Path, step: int, process: subprocess.Popen, timeout_s: float = 180) -> None:
    """Until the run has recorded `step` in this attempt."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if any(seen >= step for seen in steps(run)):
            return
        assert process.poll() is None, f"ended with {process.returncode} before step {step}"
        time.sleep(0.05)
    raise TimeoutError(f"step {step} was not reached in {timeout_s:g} s")


def family(process: subprocess.Popen) -> list[psutil.Process]:
    return [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]


def kill_everything(process: subprocess.Popen) -> None:
    """kill -9 of the driver and of all that it started."""
    for member in family(process):
        with contextlib.suppress(psutil.NoSuchProcess):
            member.send_signal(signal.SIGKILL)
    process.wait()


def train_workers(process: subprocess.Popen) -> list[psutil.Process]:
    """The Ray Train workers below a driver."""
    found = []
    for member in family(process):
        with contextlib.suppress(psutil.NoSuchProcess):
            if "RayTrainWorker" in " ".join(member.cmdline()):
                found.append(member)
    return found
