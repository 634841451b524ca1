"""Whole training against lightly 1.6: images per CPU-second of the process tree, Ray included."""

import json
import shutil
import statistics
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from benchmarks import data
from benchmarks.measure import Speed, interleaved, spread, steady_speed

NUM_IMAGES, BATCH, STEPS = 10_000, 256, 24
OURS_FROM, PEER_FROM = 45, 9  # past what was read ahead at the start, which is more for us
HOME = data.CACHE / "home"
MARKS = HOME / "speed" / "logs" / "metrics.jsonl"
PEERS = {
    "lightly, fp32 (its default)": [],
    "lightly, bf16": ["--bf16"],
    "lightly, bf16 + channels_last + compile": ["--bf16", "--channels-last", "--compile"],
}


def ours(precision: str) -> Speed:
    shutil.rmtree(HOME / "speed", ignore_errors=True)
    settings = [
        f"data.train={data.shards_of(NUM_IMAGES)}", "data.holdout=0", "epochs=100", f"precision={precision}",
        "method.hidden_dim=128", "method.temperature=0.5", "method.view_forward=per_view", "norm.group=256",
        f"batch.global={BATCH}", "scale.workers=1", "track.every_steps=3", "track.register=null",
    ]  # fmt: skip
    command = [sys.executable, "-m", "vergence.pipelines.cli", "pretrain", "simclr-cifar10", *settings]
    MARKS.parent.mkdir(parents=True, exist_ok=True)
    return steady_speed(
        [*command, "--name", "speed"],
        MARKS,
        OURS_FROM,
        OURS_FROM + STEPS,
        BATCH,
        {"VERGENCE_HOME": str(HOME)},
    )


def peer(flags: list[str]) -> Speed:
    marks = data.CACHE / "lightly.jsonl"
    command = [sys.executable, "-m", "benchmarks.lightly_simclr", str(data.folder_of(NUM_IMAGES)), str(marks)]
    return steady_speed(
        [*command, *flags], marks, PEER_FROM, PEER_FROM + STEPS, BATCH, {"OMP_NUM_THREADS": "1"}
    )


def run(rounds: int, says: Callable[[str], None]) -> dict[str, Any]:
    """Speeds, and the ratios that are asked for with their bounds."""
    native = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    precision = "bf16" if native else "fp32"
    us = f"vergence, {precision}"
    variants: dict[str, Callable[[], Speed]] = {us: partial(ours, precision)}
    variants |= {name: partial(peer, flags) for name, flags in PEERS.items()}
    if not native:
        says("this CPU has no native bf16: the figures of fp32 count, the bound against fp32 stays 2.0")
    results = interleaved(variants, rounds, says)
    speeds = {name: spread([speed.images_per_cpu_s for speed in rows]) for name, rows in results.items()}
    ratios = {
        name: spread([a.images_per_cpu_s / b.images_per_cpu_s for a, b in zip(results[us], results[name])])
        for name in PEERS
    }
    records = [json.loads(line) for line in MARKS.read_text().splitlines()]
    waits = [record["data_wait_share"] for record in records if record["step"] > OURS_FROM]
    default, bf16, _ = PEERS
    checks = {f"{us} / {default}": (ratios[default]["median"], 2.0)}
    if native:
        checks[f"{us} / {bf16}"] = (ratios[bf16]["median"], 1.3)
    return {
        "images_per_cpu_s": speeds,
        "ratios": ratios,
        "at_least": checks,
        "at_most": {"share of our time spent waiting for data": (statistics.median(waits), 0.03)},
    }
