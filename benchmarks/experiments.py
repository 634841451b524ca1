"""Recipes trained and measured in processes of their own, and a ledger that keeps what they found.

Training is the rank loop of one worker in one process, without Ray and MLflow, as `benchmarks.alone` does it; what
is measured are the protocols of `vergence evaluate`. What the ledger knows is not done again.
"""

import json
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from datetime import date
from multiprocessing import get_context
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NamedTuple, Self

import torch

from benchmarks import data
from benchmarks.__main__ import machine
from benchmarks.alone import shares
from benchmarks.measure import tree_cpu_s
from vergence.methods.method import Encoder
from vergence.pipelines.recipe import Recipe, build_method, load_recipe
from vergence.pipelines.resolve import data_facts, resolve
from vergence.platform.cluster.session import MALLOC
from vergence.platform.data.index import Index, open_index
from vergence.platform.encoders.encoder import Embedder, ModuleEncoder
from vergence.platform.evaluate.features import features
from vergence.platform.evaluate.labelled import in_one_numbering, open_labelled
from vergence.platform.evaluate.measure import measure
from vergence.platform.evaluate.pixels import Pixels
from vergence.platform.evaluate.protocols import PROTOCOLS
from vergence.platform.evaluate.spread import effective_rank, embedding_std
from vergence.platform.home import home
from vergence.platform.runs import commit as commits
from vergence.platform.runs import records
from vergence.platform.runs.run import Run, locked
from vergence.platform.train.loop import RankLoop
from vergence.platform.version import code_version

RUNS_A_PROCESS = 8  # DeepSpeed keeps a little of every engine


class Sets(NamedTuple):
    """Patterns of shards.  train: of all runs, and the bank; test: what is asked, of finals and untrained encoders."""

    train: str
    test: str


class Work(NamedTuple):
    """What is asked of one process; plain, for it is sent there.

    kind: trial: trained, kNN on the run's holdout; final: trained and measured on the test set; untrained: the same
    encoder measured before its first step; pixels: its input measured.
    """

    kind: Literal["trial", "final", "untrained", "pixels"]
    recipe: str
    settings: tuple[str, ...]
    sets: Sets

    def load(self) -> Recipe:
        return load_recipe(self.recipe, [*self.settings, f"data.train={self.sets.train}"])

    def open(self) -> Index:
        return open_index(self.sets.train, home() / "index")

    @property
    def key(self) -> str:
        """Equal for work with equal results, but for the code."""
        recipe, images = self.load(), Path(self.sets.train).parent.name
        if self.kind == "pixels":
            return f"pixels {recipe.size} {images}"
        if self.kind == "untrained":  # many recipes begin with the same weights
            return f"untrained {embedder(untrained(recipe, self.open()), recipe).digest} {images}"
        # a trial is timed, and what is found elsewhere is no answer
        where = " gpu" if self.kind == "trial" and recipe.scale.gpus_per_worker else ""
        return f"{self.kind} {self.recipe} {recipe.digest()} {images}{where}"


def untrained(recipe: Recipe, index: Index) -> Encoder:
    return build_method(recipe, data_facts(recipe, index)).encoder


def embedder(encoder: Encoder, recipe: Recipe) -> ModuleEncoder:
    """The encoder as it is measured: in eval mode, in float32."""
    return ModuleEncoder.of(
        encoder, recipe.method.name, size=recipe.size, mean=recipe.data.mean, std=recipe.data.std
    )


def do(work: Work) -> dict[str, Any]:
    """The result of some work, as plain values."""
    torch.set_num_threads(1)
    recipe = work.load()
    match work.kind:
        case "pixels":
            return measured(Pixels(recipe.size, recipe.data.mean, recipe.data.std), work.sets)
        case "untrained":
            return measured(embedder(untrained(recipe, work.open()), recipe), work.sets)
        case "trial":
            return trained(recipe, work.open())[1]
        case "final":
            encoder, found = trained(recipe, work.open())
            return found | measured(embedder(encoder, recipe), work.sets)


def trained(recipe: Recipe, index: Index) -> tuple[Encoder, dict[str, Any]]:
    """The encoder after the run of a recipe, and what the run says of itself.

    images_per_cpu_s: of this process and its children, from the first step to the last commit. A run that came to
    nothing (loss or gradients that are not finite) has `failed` instead of figures.
    """
    run = Run(f"{os.getpid()}-{recipe.digest()}")
    resolved = resolve(recipe, index, build_method(recipe, data_facts(recipe, index)))
    with locked(run):
        run.logs.mkdir(parents=True)
        loop = RankLoop(resolved.job(run, {}))
        before = tree_cpu_s(os.getpid())
        outcome = loop.run(shares(resolved, 0))
        cpu_s = tree_cpu_s(os.getpid()) - before
        found: dict[str, Any] = {"failed": outcome.message}
        if outcome.status == "finished":
            images = resolved.steps * resolved.plan.global_batch
            metrics = _last_metrics(run.logs)
            found = {
                "score": commits.newest(run.commits).score,
                "loss": metrics.get("loss"),
                "images_per_cpu_s": images / cpu_s,
                "metrics": metrics,
            }
    shutil.rmtree(run.path)
    found["on"] = where(bool(recipe.scale.gpus_per_worker))
    return loop.method.encoder, {name: value for name, value in found.items() if value is not None}


def _last_metrics(logs: Path) -> dict[str, float]:
    """What the loss and the method told at the last record."""
    told = [records.parse(line) for line in (logs / "metrics.jsonl").read_bytes().splitlines()]
    return dict([each.values for each in told if isinstance(each, records.Metrics)][-1])


def measured(encoder: Embedder, sets: Sets) -> dict[str, Any]:
    """Top-1 by version of protocol; effective rank and spread of the test set's representations.

    h_std: of unit vectors, times sqrt(dim): 0 when all are alike, at most 1.
    """
    bank, test = (open_labelled(pattern, home() / "index") for pattern in sets)
    pair = in_one_numbering(bank, test)
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder)
        found = measure([encoder], pair, [*PROTOCOLS.values()], threads=1, cache=cache)
        [asked] = features([encoder], pair.test.index, pair.test.ids, threads=1, cache=cache)
    top1 = {version: scores.top1 for version, scores in found.scores[0].items()}
    rows = asked.rows
    return {
        **top1,
        "effective_rank": effective_rank(rows),
        "h_std": embedding_std(rows) * rows.shape[1] ** 0.5,
    }


class Ledger:
    """Results by what was asked, a line of JSON each, kept as they come; work is done `jobs` at a time.

    As a context manager; `result` may be called on several threads, and waits.
    """

    def __init__(self, path: Path, jobs: int, says: Callable[[str], None] = print) -> None:
        self.path, self.jobs, self.says = path, jobs, says
        self._lock, self._free = threading.Lock(), threading.Semaphore(jobs)
        self._known = {line["key"]: line for line in _lines(path)}
        self._pending: dict[str, Future[dict[str, Any]]] = {}

    def __enter__(self) -> Self:
        if self.path.exists() and not self.path.read_bytes().endswith(b"\n"):  # what a kill has cut
            with self.path.open("a") as file:
                file.write("\n")
        os.environ |= {"GLIBC_TUNABLES": MALLOC, "OMP_NUM_THREADS": "1"}  # read when a process starts
        self._pool = ProcessPoolExecutor(self.jobs, get_context("spawn"), max_tasks_per_child=RUNS_A_PROCESS)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(cancel_futures=True)

    def result(self, work: Work) -> Mapping[str, Any]:
        """What this work finds, now or at an earlier time. Raises whatever it raises."""
        with self._lock:  # what is built for a key draws from torch's one generator
            key = work.key
            if key in self._known:
                return self._known[key]
        with self._free:  # a pool whose processes are replaced forgets what waits in it (CPython gh-115634)
            with self._lock:
                if key in self._known:
                    return self._known[key]
                if key not in self._pending:
                    self._pending[key] = self._pool.submit(do, work)
                future = self._pending[key]
            found = future.result()
        with self._lock:
            if key not in self._known:
                self._keep(key, work, found)
            return self._known[key]

    def results(self, works: Sequence[Work]) -> list[Mapping[str, Any]]:
        """The same of several, side by side."""
        with ThreadPoolExecutor(max(1, len(works))) as pool:
            return list(pool.map(self.result, works))

    def _keep(self, key: str, work: Work, found: Mapping[str, Any]) -> None:
        settings = [setting.replace(f"{data.CACHE}/", "") for setting in work.settings]
        line = {
            "key": key,
            "kind": work.kind,
            "recipe": work.recipe,
            "settings": settings,
            **found,
            "jobs": self.jobs,
            "code": code_version(),
            "date": f"{date.today()}",
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        self._known[key] = line
        self.says(_told(line))


def where(gpu: bool) -> str:
    """What trains here, for a table."""
    if gpu:
        return f"one {torch.cuda.get_device_name()}"
    found = machine()
    return f"{found['cores']} cores of {found['cpu']}"


def _lines(path: Path) -> list[dict[str, Any]]:
    """Whole lines: a kill may have left a part of the last one."""
    found = []
    for text in path.read_text().splitlines() if path.exists() else ():
        try:
            found.append(json.loads(text))
        except ValueError:
            continue
    return found


def _told(line: Mapping[str, Any]) -> str:
    figures = {name: value for name, value in line.items() if isinstance(value, float)}
    words = [f"{name} {value:.4g}" for name, value in figures.items()]
    if "failed" in line:
        words.append(line["failed"])
    return f"{line['kind']} {line['recipe']} {' '.join(line['settings'])}: {', '.join(words)}"
