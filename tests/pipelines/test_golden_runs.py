"""Shipped recipes train as they did: losses of a few steps, of narrow encoders on a few images of noise.

The runs of version 0.1 had these losses; simclr-cifar10 since its residual gains no longer start at zero, methods that came
later since they came, and those whose recipes have what their trials chose (26 November 2026) since then. A change here is a
change of the objective, of the initial weights, of the order, of the views or of a schedule, and needs a reason.
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
    "barlow_twins-cifar10": [947.763, 1008.58, 863.967, 911.828, 855.253, 846.05],
    "byol-cifar10": [4.04036, 4.08026, 3.97323, 3.77404, 3.37829, 3.10946],
    "deep_cluster-cifar10": [2.99597, 2.99641, 2.99771, 3.00337, 3.034],
    "deep_cluster_v2-cifar10": [2.99413, 2.99114, 2.98715, 3.00262, 2.98336],
    "digits": [4.12833, 4.24706, 3.77788, 3.50605, 3.454, 4.05421],
    "dino-cifar10": [7.8185, 7.87061, 7.97689, 7.7229, 7.58375, 7.63377],
    "inst_disc-cifar10": [4.43541, 6.34549, 6.77662, 7.14586, 7.50742, 4.46044],
    "inva_spread-cifar10": [4.35836, 4.44621, 4.62866, 4.54568, 4.36724, 4.45962],
    "mocov1-cifar10": [0.542558, 2.99694, 3.93491, 4.10345, 4.25959, 4.37259],
    "mocov2-cifar10": [0.434419, 2.99364, 3.6909, 3.89997, 4.10403, 4.48613],
    "infomin-cifar10": [2.41782, 3.28171, 3.87573, 4.06458, 4.36086, 4.585],
    "dense_cl-cifar10": [0.551668, 3.11781, 3.79943, 4.00539, 4.26081, 4.50486],
    "adco-cifar10": [0.443301, 2.96537, 3.65057, 3.88363, 4.10916, 4.46768],
    "contrastive_clustering-cifar10": [6.3593, 6.45321, 6.42012, 6.38785, 6.33673, 6.40259],
    "cpc-cifar10": [7.98454, 7.93109, 7.91179, 7.82982, 7.71995, 7.60847],
    "cpc_v2-cifar10": [26.7086, 26.6945, 26.6967, 26.6917, 26.6856, 26.6889],
    "cmc-cifar10": [17.0862, 17.4114, 17.2455, 16.7251, 16.0762, 17.1614],
    "swav-cifar10": [5.87395, 5.93715, 5.97457, 5.93913, 5.7326, 5.93854],
    "mocov3-cifar10": [2.30859, 2.38933, 2.23755, 2.37029, 2.40873, 2.35085],
    "mocov3_vit-cifar10": [2.27384, 2.28551, 2.15677, 2.28183, 2.36842, 2.27759],
    "dino_vit-cifar10": [7.18849, 7.02483, 7.7144, 7.43714, 7.25713, 7.41679],
    "barlow_twins_mean-cifar10": [320.883, 333.659, 276.218, 296.48, 265.24, 265.424],
    "simsiam-cifar10": [-0.00342456, -0.0136746, 0.00593621, -0.00365929, -0.0166711, -0.00175147],
    "vicreg-cifar10": [40.872, 40.8552, 41.2908, 40.4942, 39.527, 40.1118],
    "byol_gn_ws-cifar10": [3.84289, 3.95562, 3.79444, 3.56855, 3.04849, 2.70202],
    "simclr_v2-cifar10": [8.68117, 9.39753, 10.0999, 9.04921, 9.14932, 10.4239],
    "simclr-cifar10": [3.89821, 4.06088, 4.61868, 4.32742, 4.12995, 4.65137],
    "shared_transformer-cifar10": [2.87222, 2.84077, 3.32743, 2.79347, 2.80969, 2.77663],
    "clip-cifar10": [2.90222, 2.82113, 3.0335, 2.7966, 2.7992, 2.7954],
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
