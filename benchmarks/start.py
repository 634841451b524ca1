"""Seconds from Enter to the first training step, on a Ray that runs, second run: the parts too."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from benchmarks import data
from benchmarks.measure import spread

NUM_IMAGES = 10_000


def run(rounds: int, says: Callable[[str], None]) -> dict[str, Any]:
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled", "RAY_worker_niceness": "0"}
    ray = [sys.executable, "-m", "ray.scripts.scripts"]
    start = [*ray, "start", "--head", "--num-cpus", "4", "--port", "6390", "--include-dashboard", "false"]
    subprocess.run(start, env=environment, check=True, stdout=subprocess.DEVNULL)
    try:
        seconds = []
        for number in range(rounds + 1):
            parts = _once({**environment, "RAY_ADDRESS": "127.0.0.1:6390"})
            says(
                f"start {number}/{rounds}: "
                + ", ".join(f"{name} {value:.1f}" for name, value in parts.items())
            )
            seconds.append(parts)
    finally:
        subprocess.run([*ray, "stop", "--force"], check=False, stdout=subprocess.DEVNULL)
    warm = seconds[1:]
    stages = {name: spread([parts[name] for parts in warm]) for name in warm[0]}
    return {
        "seconds": stages,
        "at_most": {"seconds to the first step": (stages["first step"]["median"], 30.0)},
    }


def _once(environment: dict[str, str]) -> dict[str, float]:
    home = data.CACHE / "home"
    shutil.rmtree(home / "start", ignore_errors=True)
    settings = [
        f"data.train={data.shards_of(NUM_IMAGES)}",
        "epochs=1",
        "batch.global=512",
        "track.register=null",
    ]
    command = [
        sys.executable,
        "-m",
        "vergence.pipelines.cli",
        "pretrain",
        "simclr-cifar10",
        *settings,
        "--name",
        "start",
    ]
    begin = time.time()
    process = subprocess.Popen(
        command,
        env={**environment, "VERGENCE_HOME": str(home)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    metrics = home / "start" / "logs" / "metrics.jsonl"
    try:
        while True:
            for line in metrics.read_text().splitlines() if metrics.exists() else ():
                record = json.loads(line)
                if record.get("event") == "first_step":
                    return {
                        name: moment - begin for name, moment in record["stages"].items() if name != "enter"
                    }
            if process.poll() is not None:
                raise RuntimeError(f"pretrain ended with {process.returncode}")
            time.sleep(0.02)
    finally:
        process.terminate()
        process.wait()
