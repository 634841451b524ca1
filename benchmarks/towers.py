"""One shared transformer beside two towers at equal compute: zero-shot and kNN on CIFAR-10, kept as JSON.

OMP_NUM_THREADS=1 .venv-bench/bin/python -m benchmarks.towers [--only clip all] [--images 2000] [--epochs 10]

Every row trains a transformer of the same width and depth on the same images and captions, one after the other, in this
process; what differs is which weights images and texts share. Two towers (`clip`) are what `shared_transformer-cifar10`
calls the same cost. Figures are those of `vergence evaluate` on 2,000 other training images. What is done is not done again.
"""

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks import alone, data

RESULTS = Path("benchmarks/results/towers.json")
RECIPE = "shared_transformer-cifar10"
TOWERS = "method={name: clip, embed_dim: 128, text_width: 192, text_layers: 4, text_heads: 3, context: 48}"
ROWS = {
    "clip": TOWERS,
    **{share: f"method.share={share}" for share in ("attention+ffn", "all", "attention", "ffn", "ln")},
}


def row(name: str, images: int, epochs: int, seed: int) -> dict[str, Any]:
    from vergence.pipelines.evaluate import evaluate
    from vergence.pipelines.recipe import build_method, load_recipe
    from vergence.pipelines.resolve import data_facts
    from vergence.platform.data.index import open_index
    from vergence.platform.home import home

    train, test = data.shards_of(images), data.shards_of(2000, first=20_000)
    settings = [
        f"data.train={train}",
        f"epochs={epochs}",
        f"seed={seed}",
        "data.holdout=0",
        "batch.global=64",
        "optim.lr=0.0005",
    ]
    recipe = load_recipe(RECIPE, [*settings, "scale.workers=1", "track.register=null", ROWS[name]])
    index = open_index(recipe.data.train, home() / "index")
    weights = [p for p in build_method(recipe, data_facts(recipe, index)).parameters() if p.requires_grad]
    run = f"{name.replace('+', '-')}-{recipe.digest()}"
    before = time.process_time()
    if alone.train(run, recipe):
        raise SystemExit(f"{name}: the run failed")
    cpu_s = round(time.process_time() - before)
    report = evaluate(run, train, test, protocols=["knn", "zero_shot"], device="cpu")
    told = report.results["encoder"]["zero_shot-v1"]
    return {
        "parameters": sum(p.numel() for p in weights),
        "cpu_s": cpu_s,
        **report.scores,
        "interval": told.interval,
        "chance": told.chance,
        "images": images,
        "epochs": epochs,
        "seed": seed,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    os.environ["VERGENCE_HOME"] = str(data.CACHE / "towers")
    found: dict[str, Any] = json.loads(options.out.read_text()) if options.out.exists() else {}
    for name in options.only:
        key = f"{name}, {options.images} images, {options.epochs} epochs, seed {options.seed}"
        if key not in found:
            found[key] = row(name, options.images, options.epochs, options.seed)
            options.out.parent.mkdir(parents=True, exist_ok=True)
            options.out.write_text(json.dumps(found, indent=1) + "\n")
        print(key, found[key], flush=True)


if __name__ == "__main__":
    main()
