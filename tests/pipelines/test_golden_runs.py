"""Shipped recipes train as they did: losses of a few steps, of narrow encoders on a few images of noise.

The runs of version 0.1 had these losses; simclr-cifar10 since its residual gains no longer start at zero, Barlow Twins
since it has LARS, methods that came later since they came. A change here is a change of the objective, of the initial
weights, of the order, of the views or of a schedule, and needs a reason.
"""

import json
from pathlib import Path

import numpy as np
import pytest
from ranks import run_ranks
from shard_files import png, write_shard

from vergence.pipelines.recipe import build_method, load_recipe
from vergence.pipelines.resolve import data_facts, resolve
from vergence.pipelines.shipped import shipped
from vergence.platform.data.index import open_index
from vergence.platform.runs.run import Run, locked
from vergence.platform.train.loop import RankLoop

LOSSES = {
    "barlow_twins-cifar10": [632.152, 771.96, 650.621, 651.313, 514.612, 589.01],
    "byol-cifar10": [4.04036, 4.08026, 3.97323, 3.77404, 3.37829, 3.10946],
    "deep_cluster-cifar10": [2.99597, 2.99641, 2.99289, 2.99377, 3.01102],
    "deep_cluster_v2-cifar10": [2.99413, 2.99114, 2.98715, 3.00262, 2.98336],
    "digits": [4.12833, 4.24706, 3.77788, 3.50605, 3.454, 4.05421],
    "dino-cifar10": [7.8185, 7.87061, 8.02657, 7.82863, 7.6709, 7.81145],
    "inst_disc-cifar10": [4.68422, 9.70376, 10.0309, 10.4445, 10.9293, 4.61657],
    "inva_spread-cifar10": [4.36137, 4.55599, 4.92962, 4.78763, 4.38747, 4.5649],
    "mocov1-cifar10": [0.542558, 2.99694, 3.93491, 4.10345, 4.25959, 4.37259],
    "mocov2-cifar10": [0.434419, 2.99364, 3.68706, 3.89449, 4.1175, 4.4887],
    "infomin-cifar10": [2.41782, 3.28171, 3.87416, 4.06026, 4.35585, 4.57344],
    "dense_cl-cifar10": [3.88751, 4.3671, 4.63727, 4.75493, 4.93639, 5.13081],
    "adco-cifar10": [0.443301, 2.96537, 3.65057, 3.88363, 4.10916, 4.46768],
    "contrastive_clustering-cifar10": [6.38057, 6.42546, 6.40152, 6.38313, 6.34853, 6.40859],
    "cpc-cifar10": [7.98454, 7.93109, 7.86507, 7.70846, 7.52319, 7.3961],
    "cpc_v2-cifar10": [26.7086, 26.6945, 26.6967, 26.6917, 26.6856, 26.6889],
    "cmc-cifar10": [17.0862, 17.4114, 17.276, 16.865, 16.7363, 16.9899],
    "swav-cifar10": [5.88253, 5.93531, 5.96478, 5.95304, 5.7836, 5.96197],
    "mocov3-cifar10": [2.21278, 2.39772, 2.27777, 2.25744, 2.42092, 2.30147],
    "mocov3_vit-cifar10": [2.27384, 2.28551, 2.15098, 2.28211, 2.3649, 2.27011],
    "dino_vit-cifar10": [7.18849, 7.02485, 7.66501, 7.33896, 7.23514, 7.33305],
    "barlow_twins_mean-cifar10": [570.995, 711.772, 587.939, 561.575, 431.773, 496.069],
    "simsiam-cifar10": [-0.00889479, -0.00824505, -0.00999938, 6.28927e-05, -0.00440533, -0.0111994],
    "vicreg-cifar10": [23.5439, 24.0852, 24.2601, 23.3683, 22.5318, 22.5524],
    "byol_gn_ws-cifar10": [3.84289, 3.95562, 3.79444, 3.56855, 3.04849, 2.70202],
    "simclr_v2-cifar10": [8.54363, 8.98154, 8.71006, 8.43004, 8.62519, 8.5326],
    "simclr-cifar10": [3.89821, 4.06088, 4.61868, 4.32742, 4.12995, 4.65137],
    "shared_transformer-cifar10": [2.87222, 2.84077, 2.98502, 2.81217, 2.84796, 2.81173],
    "clip-cifar10": [2.90222, 2.82113, 2.83993, 2.80531, 2.80087, 2.83644],
}
CAPTIONED = ("clip-cifar10", "shared_transformer-cifar10")  # of classes


def losses(rank: int, world_size: int, name: str, folder: Path) -> list[float]:
    small = (
        "data.holdout=0", "epochs=2", "schedule.warmup_epochs=0.5", "batch.global=16",
        "norm.group=8", "precision=fp32", "scale.workers=1", "track.every_steps=1",
        "encoder.depth=1" if name.startswith("shared") or "_vit" in name else "encoder.width=0.0625",
        *(["method.clusters=20"] if name.startswith("deep_cluster") else []),
        *(["norm.span=16"] if name.startswith(("mocov1", "mocov2", "dense_cl", "adco", "infomin")) else []),
    )  # fmt: skip
    shard = folder / "t-000000.tar"
    pixels = np.random.default_rng(0).integers(0, 256, (80, 8, 8, 3), dtype=np.uint8)
    enlarged = pixels.repeat(4, 1).repeat(4, 2)
    classes = [{"cls": b"cat" if i % 2 else b"dog"} if name in CAPTIONED else {} for i in range(len(pixels))]
    write_shard(shard, ((f"{i:03d}", {"png": png(image)} | classes[i]) for i, image in enumerate(enlarged)))
    recipe, index = load_recipe(name, [f"data.train={shard}", *small]), open_index(shard, folder / "index")
    resolved = resolve(recipe, index, build_method(recipe, data_facts(recipe, index)))
    run = Run(name, attempt="test")
    run.logs.mkdir(parents=True)
    loop, stream = RankLoop(resolved.job(run, {})), resolved.stream
    with locked(run):
        loop.run(stream.share(step, 0, 1) for step in range(resolved.steps))
    records = (json.loads(line) for line in (run.logs / "metrics.jsonl").read_text().splitlines())
    return [record["loss"] for record in records if "loss" in record]


@pytest.mark.parametrize("name", LOSSES)
def test_losses_of_the_first_steps(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VERGENCE_HOME", str(tmp_path / "home"))
    (found,) = run_ranks(losses, 1, name, tmp_path)
    known = LOSSES[name]
    assert found[: len(known)] == pytest.approx(
        known, rel=1e-3, abs=1e-5
    )  # later steps and clusterings amplify rounding


def test_every_recipe_that_runs_on_small_images_is_here() -> None:
    assert {name for name in shipped("recipe") if name.endswith("-cifar10")} <= set(LOSSES)
