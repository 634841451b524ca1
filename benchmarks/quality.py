"""Slow quality figures, kept as JSON in benchmarks/results with the commands that made them.

.venv-bench/bin/python -m benchmarks.quality full | lightly | methods
"""

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import data
from benchmarks.__main__ import machine

HOME = data.CACHE / "quality"
RESULTS = Path("benchmarks/results")
NUM_IMAGES = 10_000
EPOCHS, LR, WARMUP = 10, 0.12, 0.5
SEEDS = (0, 1, 2)


def vergence(*arguments: str) -> str:
    """Run a command to its end; the command as a user types it."""
    command = [sys.executable, "-m", "vergence.pipelines.cli", *arguments]
    subprocess.run(command, check=True, env={**os.environ, "VERGENCE_HOME": str(HOME)})
    relative = [argument.replace(f"{data.CACHE}/", "") for argument in arguments]
    return shlex.join(["vergence", *relative])


def pretrain(name: str, recipe: str, *settings: str) -> dict[str, Any]:
    """A run to its end (what is done is not done again), with its speed and last metrics."""
    command = vergence("pretrain", recipe, *settings, "track.register=null", "--name", name)
    lines = (HOME / name / "logs" / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    steps = [record for record in records if "loss" in record]
    scores = [record for record in records if "knn" in record]
    return {
        "command": command,
        "images_per_s": statistics.median(record["images_per_s"] for record in steps[1:]),
        "data_wait_share": statistics.median(record["data_wait_share"] for record in steps[1:]),
        "effective_rank": steps[-1]["effective_rank"],
        "loss": steps[-1]["loss"],
        "holdout": scores[-1],
    }


def evaluate(encoder: str, train: str, *options: str) -> dict[str, Any]:
    """The report of `vergence evaluate` on the 10,000 test images."""
    report = HOME / "report.json"
    test = f"{data.pack_parquet('test')}"
    vergence("evaluate", encoder, "--train", train, "--test", test, "--json", str(report), *options)
    results: dict[str, Any] = json.loads(report.read_text())
    return results


def full() -> Iterator[dict[str, Any]]:
    """SimCLR, 5 epochs over the 49,000 training images."""
    train = data.pack_parquet("train")
    run = pretrain("full", "simclr-cifar10", f"data.train={train}")
    yield {"run": run, "report": evaluate("full", train, "--baselines")}


def methods() -> Iterator[dict[str, Any]]:
    """MoCo v2, BYOL and Barlow Twins on 10,000 images, 20 epochs."""
    train, found = data.shards_of(NUM_IMAGES), {}
    for name in ("mocov2", "byol", "barlow_twins"):
        run = pretrain(name, f"{name}-cifar10", f"data.train={train}", "data.holdout=0.1")
        found[name] = {"run": run, "report": evaluate(name, train, "--baselines")}
        yield found


def lightly() -> Iterator[dict[str, Any]]:
    """Ours and lightly's SimCLR on the same 9,000 of 10,000 images, 10 epochs, batch 256, three seeds."""
    train = data.shards_of(NUM_IMAGES)
    folder = data.training_part(NUM_IMAGES, holdout=0.1)
    found: dict[str, Any] = {"ours": [], "lightly": []}
    for seed in SEEDS:
        settings = [
            f"data.train={train}", "data.holdout=0.1", f"epochs={EPOCHS}", "batch.global=256", f"seed={seed}",
            f"optim.lr={LR}", f"schedule.warmup_epochs={WARMUP}", "norm.group=128", "scale.workers=1",
        ]  # fmt: skip
        run = pretrain(f"ours-{seed}", "simclr-cifar10", *settings)
        top1 = evaluate(f"ours-{seed}", train)["results"]["encoder"]["top1"]
        found["ours"].append({"command": run["command"], "holdout knn": run["holdout"]["knn"], "top1": top1})
        export = HOME / f"lightly-{seed}"
        command = [
            sys.executable, "-m", "benchmarks.lightly_simclr", str(folder), str(HOME / "lightly.jsonl"), "--bf16",
            "--seed", str(seed), "--lr", str(LR), "--warmup", str(WARMUP), "--epochs", str(EPOCHS),
            "--export", str(export),
        ]  # fmt: skip
        if not export.exists():
            subprocess.run(command, check=True)
        top1 = evaluate(str(export), train)["results"]["encoder"]["top1"]
        found["lightly"].append({"command": shlex.join(["python", *command[1:]]), "top1": top1})
        for name in ("ours", "lightly"):
            values = [row["top1"] for row in found[name]]
            found[f"{name} top1"] = {"mean": statistics.mean(values), "min": min(values), "max": max(values)}
        yield found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["full", "lightly", "methods"])
    what = parser.parse_args().what
    RESULTS.mkdir(exist_ok=True)
    for result in globals()[what]():  # what is done is kept, whatever comes after
        text = json.dumps({"machine": machine(), **result}, indent=1).replace(f"{data.CACHE}/", "")
        (RESULTS / f"{what}.json").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
