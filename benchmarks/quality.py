"""Slow quality figures, kept as JSON in benchmarks/results with the commands that made them.

OMP_NUM_THREADS=1 .venv-bench/bin/python -m benchmarks.quality full | lightly

`lightly --gpu --jobs 6` trains both sides on a GPU, six runs at a time; neither Ray nor MLflow is needed for it.
"""

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import data
from benchmarks.__main__ import machine

HOME = data.CACHE / "quality"
RESULTS = Path("benchmarks/results")
NUM_IMAGES = 10_000


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


def evaluate(encoder: str, train: str, *options: str, test: str | None = None) -> dict[str, Any]:
    """The report of `vergence evaluate`, on the 10,000 test images if no other shards are given."""
    report = HOME / f"report-{threading.get_ident()}.json"
    test = test or data.pack_parquet("test")
    vergence("evaluate", encoder, "--train", train, "--test", test, "--json", str(report), *options)
    results: dict[str, Any] = json.loads(report.read_text())
    return results


def full() -> Iterator[dict[str, Any]]:
    """SimCLR, 5 epochs over the 49,000 training images."""
    train = data.pack_parquet("train")
    run = pretrain("full", "simclr-cifar10", f"data.train={train}")
    yield {"run": run, "report": evaluate("full", train, "--baselines")}


class Setting(NamedTuple):
    temperature: float
    lr: float  # at batch 256


Asked = tuple[str, Setting, int]  # side, setting, seed
SETTINGS = [Setting(temperature, lr) for lr in (0.12, 0.5) for temperature in (0.1, 0.2, 0.5)]
DOCUMENTED = {"ours": Setting(0.2, 0.12), "lightly": Setting(0.5, 0.12)}  # our recipe; its CIFAR-10 benchmark
EPOCHS, WARMUP = 3, 0.5
NUM_JUDGES = 5_000  # images of the training set, behind the first NUM_IMAGES, that choose between settings
SEEDS = (0, 1, 2)


def lightly(jobs: int, gpu: bool) -> Iterator[dict[str, Any]]:
    """Ours and lightly's SimCLR on the same 9,000 of 10,000 images, batch 256, bf16, each tuned alike.

    Six settings a side are tried for 3 epochs; images that neither trains on choose the best. Then three seeds, as
    documented and at the best, and the test set once.
    """
    data.training_part(NUM_IMAGES, holdout=0.1)  # all that the runs share is made before the first
    data.shards_of(NUM_JUDGES, first=NUM_IMAGES), data.pack_parquet("test")
    found: dict[str, Any] = {"documented": {side: each._asdict() for side, each in DOCUMENTED.items()}}
    with ThreadPoolExecutor(jobs) as pool:

        def rows(asked: list[Asked], **rest: Any) -> dict[Asked, dict[str, Any]]:
            return dict(zip(asked, pool.map(lambda each: trained(*each, gpu=gpu, **rest), asked)))

        tried = rows(
            [(side, setting, 0) for setting in SETTINGS for side in DOCUMENTED],
            epochs=EPOCHS,
            judged=True,
        )
        judged = {side: [tried[side, setting, 0] for setting in SETTINGS] for side in DOCUMENTED}
        best = {
            side: max(zip(SETTINGS, judged[side]), key=lambda pair: pair[1]["top1"])[0] for side in judged
        }
        found |= {"trials": judged, "best": {side: setting._asdict() for side, setting in best.items()}}
        yield found
        chosen = {
            "lightly, best": best["lightly"], "ours, best": best["ours"],
            "lightly, documented": DOCUMENTED["lightly"], "ours, documented": DOCUMENTED["ours"],
        }  # fmt: skip
        asked = [(name.split(",")[0], chosen[name], seed) for name in chosen for seed in SEEDS]
        once = list(dict.fromkeys(asked))  # the best may be as documented
        finals = rows(once, epochs=EPOCHS, judged=False)
    for name, setting in chosen.items():
        runs = [finals[name.split(",")[0], setting, seed] for seed in SEEDS]
        values = [row["top1"] for row in runs]
        found[name] = {
            "runs": runs, "mean": statistics.mean(values), "min": min(values), "max": max(values)
        }  # fmt: skip
    yield found


def trained(
    side: str, setting: Setting, seed: int, *, epochs: int, judged: bool, gpu: bool
) -> dict[str, Any]:
    """Top-1 of a run with the command that made it; what is done is not done again."""
    name = f"{side}-t{setting.temperature}-lr{setting.lr}-e{epochs}-s{seed}"
    home = HOME / "gpu" if gpu else HOME
    known = home / f"{name}.{'judged' if judged else 'test'}.json"
    if not known.exists():
        train = data.shards_of(NUM_IMAGES)
        run = our_run if side == "ours" else lightly_run
        encoder, command = run(home, name, setting, epochs, seed, gpu)
        test = data.shards_of(NUM_JUDGES, first=NUM_IMAGES) if judged else None
        top1 = evaluate(encoder, train, test=test)["results"]["encoder"]["knn-v1"]["top1"]
        known.write_text(json.dumps({**setting._asdict(), "seed": seed, "top1": top1, "command": command}))
    row: dict[str, Any] = json.loads(known.read_text())
    return row


def our_run(home: Path, name: str, setting: Setting, epochs: int, seed: int, gpu: bool) -> tuple[str, str]:
    """Encoder and command of a run of ours."""
    settings = [
        f"data.train={data.shards_of(NUM_IMAGES)}", "data.holdout=0.1", f"epochs={epochs}", "batch.global=256",
        f"seed={seed}", f"method.temperature={setting.temperature}", f"optim.lr={setting.lr}",
        f"schedule.warmup_epochs={WARMUP}", "norm.group=128", "scale.workers=1", "track.register=null",
        "precision=bf16", *(["scale.gpus_per_worker=1"] if gpu else []),
    ]  # fmt: skip
    command = [sys.executable, "-m", "benchmarks.alone", name, "simclr-cifar10", *settings]
    subprocess.run(command, check=True, env={**os.environ, "VERGENCE_HOME": str(home)})
    return str(home / name / "exports"), shlex.join(["python", *command[1:]])


def lightly_run(
    home: Path, name: str, setting: Setting, epochs: int, seed: int, gpu: bool
) -> tuple[str, str]:
    """Encoder and command of a run of lightly's."""
    folder, export = data.training_part(NUM_IMAGES, holdout=0.1), home / name
    command = [
        sys.executable, "-m", "benchmarks.lightly_simclr", str(folder), str(HOME / f"{name}.jsonl"), "--bf16",
        "--channels-last", "--seed", str(seed), "--temperature", str(setting.temperature), "--lr", str(setting.lr),
        "--warmup", str(WARMUP), "--epochs", str(epochs), "--export", str(export),
        *(["--device", "cuda", "--workers", "3"] if gpu else []),
    ]  # fmt: skip
    if not export.exists():
        subprocess.run(command, check=True)
    return str(export), shlex.join(["python", *command[1:]])


def main() -> None:
    sections = {"full": full}
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=[*sections, "lightly"])
    parser.add_argument("--gpu", action="store_true", help="lightly: train on a GPU")
    parser.add_argument("--jobs", type=int, default=1, help="lightly: runs at a time")
    options = parser.parse_args()
    for folder in (RESULTS, HOME):
        folder.mkdir(parents=True, exist_ok=True)
    results = sections[options.what]() if options.what in sections else lightly(options.jobs, options.gpu)
    for result in results:  # what is done is kept, whatever comes after
        about = {"date": f"{date.today()}", "machine": machine()}
        text = json.dumps(about | result, indent=1).replace(f"{data.CACHE}/", "")
        (RESULTS / f"{options.what}.json").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
