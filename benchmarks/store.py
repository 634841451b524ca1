"""Shards behind a web server that takes 20 ms for each answer, beside the same shards as files: bytes, and whole training.

Order by chunks, the cache of the node empty at the start of each round. CIFAR-10 at 32 px, and photographs at 224.
"""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import data, photos
from benchmarks.measure import interleaved, spread

LATENCY_S, BATCH, NUM_IMAGES = 0.02, 256, 10_000
EPOCHS = 3
CACHE = data.CACHE / "node"
RECIPES = {
    "cifar": [
        "simclr-cifar10", "data.holdout=0", "method.hidden_dim=128", "norm.group=256", f"batch.global={BATCH}"
    ],
    "photos": [
        "simclr-cifar10", "data.holdout=0", "encoder={name: resnet18, width: 0.25}", "norm.group=64",
        "views=[{count: 2, size: 224, recipe: simclr}]", "batch.global=64", "method.hidden_dim=128",
    ],
}  # fmt: skip


class Trained(NamedTuple):
    """wait: share of the time in which training had no data; first, later: requests in the first epoch, and after it."""

    images_per_s: float
    wait: float
    first: int
    later: int


class Server:
    """A web server of a folder, in a process of its own."""

    def __init__(self, address: str) -> None:
        self.address = address

    def requests(self) -> int:
        """For bytes of shards, so far."""
        with urllib.request.urlopen(f"{self.address}/-/requests") as answer:
            return int(answer.read())


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[Server]:
    command = [sys.executable, "tests/object_servers.py", str(folder), str(LATENCY_S)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield Server(process.stdout.readline().strip())
    finally:
        process.kill()
        process.wait()


def shards(kind: str) -> list[Path]:
    pattern = data.shards_of(NUM_IMAGES) if kind == "cifar" else photos.shards()
    folder, _, names = pattern.rpartition("/")
    return sorted(Path(folder).glob(names))


def forget() -> None:
    """What the node keeps."""
    shutil.rmtree(CACHE, ignore_errors=True)


def train(kind: str, pattern: str, server: Server) -> Trained:
    """Speed of `vergence pretrain` from its second step on."""
    home, name = data.CACHE / "home", "store"
    shutil.rmtree(home / name, ignore_errors=True)
    forget()
    settings = [
        f"data.train={pattern}", "data.order={kind: chunk}", f"data.cache.folder={CACHE}", f"epochs={EPOCHS}",
        "scale.workers=1", "track.every_steps=1", "track.register=null",
    ]  # fmt: skip
    command = [
        sys.executable,
        "-m",
        "vergence.pipelines.cli",
        "pretrain",
        *RECIPES[kind],
        *settings,
        "--name",
        name,
    ]
    marks, samples = home / name / "logs/metrics.jsonl", list[tuple[float, int]]()
    with (data.CACHE / "store.log").open("w") as log:
        process = subprocess.Popen(
            command, env={**os.environ, "VERGENCE_HOME": str(home)}, stdout=log, stderr=log
        )
    while process.poll() is None:
        samples.append((time.time(), server.requests()))
        time.sleep(0.2)
    if process.returncode:
        raise RuntimeError(f"{command} ended with {process.returncode}; see {data.CACHE / 'store.log'}")
    told = [record for record in map(json.loads, marks.read_text().splitlines()) if "images_per_s" in record][
        1:
    ]
    seconds = [1 / record["images_per_s"] for record in told]
    waits = [second * record["data_wait_share"] for second, record in zip(seconds, told)]
    epoch = next(each["time"] for each in told if each["step"] + 1 >= (told[-1]["step"] + 1) / EPOCHS)
    first = [requests for moment, requests in samples if moment <= epoch][-1] - samples[0][1]
    later = samples[-1][1] - samples[0][1] - first
    return Trained(len(told) / sum(seconds), sum(waits) / sum(seconds), first, later)


def read(pattern: str, decode: bool) -> Callable[[], float]:
    """Samples a second of an epoch in its order, nothing kept before; decode: their pixels, else their bytes."""
    from vergence.platform.data.index import open_index
    from vergence.platform.data.order import Order
    from vergence.platform.data.plan import Plan
    from vergence.platform.data.read import Reader
    from vergence.platform.data.remote import Access

    index = open_index(pattern, data.CACHE / "index")
    plan = Plan(len(index), 0.0, 0, BATCH, Order(kind="chunk"))

    def epoch() -> float:
        forget()
        reader, begun = Reader(index, access=Access(folder=CACHE)), time.perf_counter()
        for batch in range(plan.batches_per_epoch):
            reader.fetch_ahead(plan.coming(0, batch, batch + 1, is_last=True), "image")
            ids = plan.batch_ids(batch)
            reader.images(ids) if decode else reader.raw(ids, "image")
        return plan.batches_per_epoch * BATCH / (time.perf_counter() - begun)

    return epoch


def run(rounds: int, says: Callable[[str], None]) -> dict[str, Any]:
    found: dict[str, Any] = {"images_per_s": {}, "ratios": {}, "at_least": {}, "at_most": {}}
    for kind in RECIPES:
        files = shards(kind)
        with serving(files[0].parent) as server:
            first, last = (file.stem.rpartition("-")[2] for file in (files[0], files[-1]))
            stem = files[0].stem.rpartition("-")[0]
            names = f"{stem}-{{{first}..{last}}}.tar"
            local, remote = f"{files[0].parent}/{names}", f"{server.address}/{names}"
            read(remote, False)  # makes the index, and reads the shards once
            variants: dict[str, Callable[[], Any]] = {
                f"{kind}, {what}, {place}": each
                for place, pattern in (("files", local), ("store", remote))
                for what, each in (
                    ("bytes", read(pattern, False)),
                    ("pixels", read(pattern, True)),
                    ("training", partial(train, kind, pattern, server)),
                )
            }
            results = interleaved(variants, rounds, says)
        runs: list[Trained] = results[f"{kind}, training, store"]
        for what in ("bytes", "pixels", "training"):
            ours, theirs = (
                [
                    each.images_per_s if isinstance(each, Trained) else each
                    for each in results[f"{kind}, {what}, {place}"]
                ]
                for place in ("store", "files")
            )
            found["images_per_s"] |= {
                f"{kind}, {what}, store": spread(ours),
                f"{kind}, {what}, files": spread(theirs),
            }
            found["ratios"][f"{kind}, {what}: store / files"] = spread([a / b for a, b in zip(ours, theirs)])
        name = f"{kind}, training: store / files"
        found["at_least"][name] = (found["ratios"][name]["median"], 0.9)
        found["at_most"] |= {
            f"{kind}: share of the time spent waiting for data": (max(each.wait for each in runs), 0.03),
            f"{kind}: requests after the first epoch": (max(each.later for each in runs), 0),
        }
        if kind == "cifar":
            found["at_most"]["cifar: requests a sample, first epoch"] = (
                max(each.first for each in runs) / NUM_IMAGES, 0.02,
            )  # fmt: skip
    forget()
    return found
