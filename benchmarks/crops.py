"""What small crops bring at equal CPU time, and what a small ViT learns: kNN on CIFAR-10 before and after.

VERGENCE_HOME=HOME python -m benchmarks.crops simclr|simclr-crops|byol|byol-crops|vit CPU_S [SETTING=VALUE ...]

10,000 training images (ViT: 4,000), one process of one thread without Ray, as many epochs as fit into CPU_S seconds.
kNN (k 20, temperature .1): the bank are the training images, the queries every fifth test image. Prints JSON.
"""

import json
import subprocess
import sys
import time
from itertools import islice
from typing import Any

import numpy as np
import torch

from benchmarks import data
from benchmarks.alone import shares
from vergence.pipelines.recipe import Recipe, build_method, initial_encoder, load_recipe
from vergence.pipelines.resolve import Resolved, data_facts, resolve
from vergence.platform.data.index import Index, open_index
from vergence.platform.evaluate.knn import knn_predict
from vergence.platform.evaluate.sweep import Sweep
from vergence.platform.home import home
from vergence.platform.runs.run import Run, locked
from vergence.platform.train.loop import RankLoop

PROBE = 8  # steps whose CPU time is measured first
CROPS = (
    "views=[{count: 2, size: 32, recipe: PRESET}, "
    "{count: 4, size: 16, recipe: simclr-cifar, crop_scale: [0.1, 0.4]}]"
)
VIT = "{name: vit_tiny_patch16_224, patch_size: 4, depth: 6, pool: mean, positions: sincos, drop_path: 0.1}"
ADAMW = "{name: adamw, lr: 0.0005, rule: none, weight_decay: {peak: 0.04, end: 0.4}}"
RUNS: dict[str, tuple[str, list[str]]] = {
    "simclr": ("simclr-cifar10", []),
    "simclr-crops": ("simclr-cifar10", [CROPS.replace("PRESET", "simclr-cifar")]),
    "byol": ("byol-cifar10", []),
    "byol-crops": ("byol-cifar10", [CROPS.replace("PRESET", "byol-cifar")]),
    "vit": ("simclr-cifar10", [f"encoder={VIT}", f"optim={ADAMW}", "schedule.warmup_epochs=1"]),
}


def prepared(name: str, epochs: int, more: list[str]) -> tuple[Recipe, Index]:
    recipe_name, settings = RUNS[name]
    train = data.shards_of(4_000 if name == "vit" else 10_000)
    common = [f"data.train={train}", "data.holdout=0", "scale.workers=1", "batch.global=128", "norm.group=64"]
    rest = [f"epochs={epochs}", "commit.every_steps=100000", "precision=bf16", *more]
    recipe = load_recipe(recipe_name, [*common, *settings, *rest])
    return recipe, open_index(train, home() / "index")


def loop_of(run: Run, recipe: Recipe, index: Index) -> tuple[RankLoop, Resolved]:
    resolved = resolve(recipe, index, build_method(recipe, data_facts(recipe, index)))
    run.logs.mkdir(parents=True, exist_ok=True)
    return RankLoop(resolved.job(run, {})), resolved


def cpu_s_of_an_epoch(name: str, more: list[str]) -> float:
    """Measured in this process, which can train no second run of another method."""
    recipe, index = prepared(name, 5, more)
    loop, resolved = loop_of(Run(f"probe-{name}"), recipe, index)
    start = 0.0
    for step, share in enumerate(islice(shares(resolved, 0), PROBE + 2)):
        start = time.process_time() if step == 2 else start
        loop._train_step(share, loop._micros(share, loop.step))
        loop.step += 1
    return (time.process_time() - start) / PROBE * resolved.plan.batches_per_epoch


def knn(recipe: Recipe, encoder: torch.nn.Module, bank: Index, queries: Index) -> float:
    """Share of the queries whose class their neighbours in the bank tell."""
    found = []
    settings: Any = {"size": recipe.size, "mean": recipe.data.mean, "std": recipe.data.std}
    for index, every in ((bank, 1), (queries, 5)):
        sweep = Sweep(
            index, np.arange(0, len(index), every), **settings, device=torch.device("cpu"), threads=1
        )
        ids, h = (torch.cat(parts) for parts in zip(*sweep(encoder)))
        found.append((h, torch.from_numpy(np.asarray(index.labels(ids.numpy())))))
    (h, labels), (asked, answers) = found
    predicted = knn_predict(h, labels, asked, k=20, temperature=0.1)
    return float((predicted == answers).double().mean())


def main() -> int:
    name, budget, *more = sys.argv[1:]
    torch.set_num_threads(1)
    if budget == "probe":
        print(cpu_s_of_an_epoch(name, more))
        return 0
    command = [sys.executable, "-m", "benchmarks.crops", name, "probe", *more]
    probe = subprocess.run(command, check=True, capture_output=True, text=True)
    an_epoch = float(probe.stdout.splitlines()[-1])
    recipe, bank = prepared(name, max(1, round(float(budget) / an_epoch)), more)
    queries = open_index(data.pack_parquet("test"), home() / "index")
    before = knn(recipe, initial_encoder(recipe, recipe.seed).train(), bank, queries)
    run = Run(f"crops-{name}")
    loop, resolved = loop_of(run, recipe, bank)
    with locked(run):
        start = time.process_time()
        outcome = loop.run(shares(resolved, 0))
        cpu_s = round(time.process_time() - start)
    assert outcome.status == "finished", outcome
    after = knn(recipe, loop.method.encoder, bank, queries)
    figures = {"epochs": recipe.epochs, "cpu_s": cpu_s, "knn_before": before, "knn_after": after}
    print(json.dumps({"run": name, **figures, "settings": [*RUNS[name][1], *more]}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
