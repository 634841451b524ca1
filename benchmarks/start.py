"""Seconds from Enter to the first training step on a Ray that runs, and memory, for short and long runs."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from benchmarks import data
from benchmarks.measure import interleaved, spread
from vergence.platform.runs.records import FirstStep, Tail

MEMORY_AFTER_S = 10.0  # past the first step: queues and caches are full
GROWTH_S, GROWTH_BYTES = 1.0, 50 << 20  # what a long run may cost more than a short one
CIFAR = ["scale.workers=2", "batch.global=512", "commit.every_steps=100000", "data.holdout=0"]
RUNS = {  # name -> (shards, settings)
    "10,000 images, 1 epoch": (lambda: data.shards_of(10_000), ["batch.global=512"]),
    "CIFAR-10, 1 epoch": (lambda: data.pack_parquet("train"), [*CIFAR, "epochs=1"]),
    "CIFAR-10, 100 epochs": (lambda: data.pack_parquet("train"), [*CIFAR, "epochs=100"]),
    "CIFAR-10, 10,000 epochs": (lambda: data.pack_parquet("train"), [*CIFAR, "epochs=10000"]),
    "ImageNet's size, 1 epoch": (lambda: data.imagenet_shaped(), [*CIFAR, "batch.global=64", "epochs=1"]),
    "ImageNet's size, 300 epochs": (
        lambda: data.imagenet_shaped(),
        [*CIFAR, "batch.global=64", "epochs=300"],
    ),
}


def run(rounds: int, says: Callable[[str], None]) -> dict[str, Any]:
    with ray_head() as environment:
        variants = {
            name: partial(_packed_once, shards, settings, environment)
            for name, (shards, settings) in RUNS.items()
        }
        for variant in variants.values():  # shards are packed and indexed, code is compiled
            variant()
        found = interleaved(variants, rounds, says)
    plain, *_ = RUNS
    stages = {
        stage: spread([parts[stage] for parts in found[plain]])
        for stage in found[plain][0]
        if stage != "bytes"
    }
    seconds = {name: spread([parts["first step"] for parts in rows]) for name, rows in found.items()}
    megabytes = {name: spread([parts["bytes"] / 1e6 for parts in rows]) for name, rows in found.items()}
    grown = {}
    for longer, short in (
        ("CIFAR-10, 10,000 epochs", "CIFAR-10, 1 epoch"),
        ("ImageNet's size, 300 epochs", "ImageNet's size, 1 epoch"),
    ):
        grown[f"seconds more for {longer}"] = (
            seconds[longer]["median"] - seconds[short]["median"],
            GROWTH_S,
        )
        grown[f"MB more for {longer}"] = (
            megabytes[longer]["median"] - megabytes[short]["median"],
            GROWTH_BYTES / 1e6,
        )
    return {
        "seconds": {**stages, **{f"first step: {name}": row for name, row in seconds.items()}},
        "megabytes": megabytes,
        "at_most": {"seconds to the first step": (stages["first step"]["median"], 30.0), **grown},
    }


@contextmanager
def ray_head() -> Iterator[dict[str, str]]:
    """A Ray that runs, and the environment of those who use it."""
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled", "RAY_worker_niceness": "0"}
    ray = [sys.executable, "-m", "ray.scripts.scripts"]
    start = [*ray, "start", "--head", "--num-cpus", "4", "--port", "6390", "--include-dashboard", "false"]
    subprocess.run(start, env=environment, check=True, stdout=subprocess.DEVNULL)
    try:
        yield {**environment, "RAY_ADDRESS": "127.0.0.1:6390"}
    finally:
        subprocess.run([*ray, "stop", "--force"], check=False, stdout=subprocess.DEVNULL)


def _packed_once(
    shards: Callable[[], str], settings: list[str], environment: dict[str, str]
) -> dict[str, float]:
    return once(shards(), settings, environment)


def once(shards: str, settings: list[str], environment: dict[str, str]) -> dict[str, float]:
    """Seconds from Enter to the end of each stage, and `bytes` that driver and ranks hold for themselves."""
    shutil.rmtree(data.HOME / "start", ignore_errors=True)
    command = [sys.executable, "-m", "vergence.pipelines.cli", "pretrain", "simclr-cifar10"]
    command += [f"data.train={shards}", *settings, "track.register=null", "--name", "start"]
    begin = time.time()
    process = subprocess.Popen(
        command,
        env={**environment, "VERGENCE_HOME": str(data.HOME)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        stages = _first_step(process, data.HOME / "start" / "logs")
        time.sleep(MEMORY_AFTER_S)
        held = [
            member.memory_full_info().uss
            for member in psutil.process_iter()
            if member.pid == process.pid or "RayTrainWorker" in member.name()
        ]
        parts = {name: moment - begin for name, moment in stages.items() if name != "enter"}
        return {**parts, "bytes": float(sum(held))}
    finally:
        process.terminate()
        process.wait()


def _first_step(process: subprocess.Popen, logs: Path) -> dict[str, float]:
    """Unix times of the stages of the start."""
    with Tail(logs) as tail:
        while True:
            for record in tail.read():
                if isinstance(record, FirstStep):
                    return dict(record.stages)
            if process.poll() is not None:
                raise RuntimeError(f"pretrain ended with {process.returncode}")
            time.sleep(0.02)
