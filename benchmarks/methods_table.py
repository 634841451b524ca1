"""Every method at one budget: tuned alike on a holdout, trained, and measured once on CIFAR-10's test set.

make methods-table                                   all; what is done is not done again: the same command goes on
make methods-table TABLE="--only simclr byol --jobs 2"
make methods-table TABLE="--jobs 16 --gpu"           all runs on one GPU, side by side
OMP_NUM_THREADS=1 python -m benchmarks.methods_table --small     minutes: proves only that everything works

A row for every recipe NAME-cifar10; budget and grids are in methods_table.yaml. Results go to
benchmarks/results/methods.json, after each method, and the table of the README is written from them.
"""

import argparse
import json
import os
import re
import shlex
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

from benchmarks import data
from benchmarks.__main__ import machine

KNN, LINEAR = "knn-v1", "linear-v1"
SUFFIX = "-cifar10"
PIXELS = "raw pixels"
BEGIN, END = "<!-- methods-table: begin -->", "<!-- methods-table: end -->"
PLAN = Path(__file__).with_name("methods_table.yaml")


class Budget(NamedTuple):
    """images: of the training set; holdout: share of them that chooses, in trials; epochs: of a final run."""

    images: int
    epochs: int
    trial_epochs: int
    holdout: float


SMALL = Budget(images=640, epochs=1, trial_epochs=1, holdout=0.2)


class Row(NamedTuple):
    """A recipe's part of the plan."""

    name: str
    settings: Sequence[str]
    grid: Mapping[str, Sequence[Any]]
    seeds: int

    @property
    def recipe(self) -> str:
        return self.name + SUFFIX

    def trials(self) -> Iterator[dict[str, Any]]:
        """Every combination of the grid: setting -> value."""
        for values in product(*self.grid.values()):
            yield dict(zip(self.grid, values))


def rows(plan: Mapping[str, Any]) -> dict[str, Row]:
    """The recipes of all methods that need nothing but images, each with what the plan says of it."""
    from vergence.methods.catalog import METHODS
    from vergence.pipelines.recipe import load_recipe
    from vergence.pipelines.shipped import shipped

    found = {}
    for name in (recipe.removesuffix(SUFFIX) for recipe in shipped("recipe") if recipe.endswith(SUFFIX)):
        recipe, own = load_recipe(name + SUFFIX), plan["recipes"].get(name, {})
        if METHODS[recipe.method.name][1].needs.fields:  # captions and the like, which CIFAR-10 does not have
            continue
        default = {"optim.lr": [factor * recipe.optim.lr for factor in plan["default"]["lr_factors"]]}
        found[name] = Row(name, own.get("settings", ()), own.get("grid", default), plan["seeds"].get(name, 1))
    return found


class Bench:
    """One use of this script."""

    def __init__(self, plan: Mapping[str, Any], options: argparse.Namespace, command: str) -> None:
        from benchmarks.experiments import Ledger, Sets

        budget = SMALL if options.small else Budget(**plan["budget"])
        given = {name: getattr(options, name) for name in ("epochs", "images")}
        self.budget = budget._replace(**{name: value for name, value in given.items() if value})
        self.plan, self.small, self.command = plan, options.small, command
        self.gpu = ["scale.gpus_per_worker=1"] if options.gpu else []
        folder = data.CACHE / ("methods-small" if options.small else "methods")
        self.json = folder / "methods.json" if options.small else Path("benchmarks/results/methods.json")
        self.readme = None if options.small else Path("README.md")
        os.environ["VERGENCE_HOME"] = str(folder / "home")
        test = data.shards_of(256, first=20_000) if options.small else data.pack_parquet("test")
        self.sets = Sets(data.shards_of(self.budget.images), test)
        self.ledger = Ledger(folder / "ledger.jsonl", options.jobs, lambda text: print(text, flush=True))
        self._lock = threading.Lock()

    @property
    def about(self) -> dict[str, Any]:
        """What must be equal for rows to stand in one table."""
        return {
            "budget": self.budget._asdict(),
            "common": self.plan["common"],
            "train": self.sets.train.replace(f"{data.CACHE}/", ""),
            "test": self.sets.test.replace(f"{data.CACHE}/", ""),
        }

    def row(self, row: Row) -> dict[str, Any]:
        """Trials, the final runs of the best one, and what they began with."""
        on_cpu, budget = [*self.plan["common"], *row.settings, "monitor.every_epochs=1000"], self.budget
        common = [*on_cpu, *self.gpu]
        as_trial = [f"epochs={budget.trial_epochs}", f"data.holdout={budget.holdout}", "seed=0"]
        short = [*common, *as_trial]
        points = [*row.trials()][: 1 if self.small else None]
        found = self._figures("trial", row, [[*short, *assignments(point)] for point in points])
        tried = [{"settings": point, **each} for point, each in zip(points, found)]
        best = chosen(tried)
        whole = [*common, f"epochs={budget.epochs}", "data.holdout=0", *assignments(best)]
        runs = self._of_seeds("final", row, whole, 1 if self.small else row.seeds)
        began = self._of_seeds("untrained", row, whole, self.plan["untrained"])
        failed = [run["failed"] for run in runs if "failed" in run]
        if failed:
            raise RuntimeError(failed[0])
        # images per CPU-second are those of a CPU alone
        [alone] = self._figures("trial", row, [[*on_cpu, *as_trial, *assignments(points[0])]])
        runs = [run | {"images_per_cpu_s": alone["images_per_cpu_s"]} for run in runs]
        command = shlex.join(["vergence", "pretrain", row.recipe, *whole])
        return {
            **described(row.recipe),
            "command": command,
            "trials": tried,
            "best": best,
            "untrained": began,
            "runs": runs,
        }

    def pixels(self, row: Row) -> dict[str, Any]:
        return self._figures("pixels", row, [()])[0]

    def _of_seeds(self, kind: Any, row: Row, settings: Sequence[str], seeds: int) -> list[dict[str, Any]]:
        found = self._figures(kind, row, [[*settings, f"seed={seed}"] for seed in range(seeds)])
        return [{"seed": seed, **each} for seed, each in enumerate(found)]

    def _figures(self, kind: Any, row: Row, runs: Sequence[Sequence[str]]) -> list[dict[str, Any]]:
        from benchmarks.experiments import Work

        lines = self.ledger.results([Work(kind, row.recipe, tuple(settings), self.sets) for settings in runs])
        left_out = ("key", "kind", "recipe", "settings")
        return [{name: value for name, value in line.items() if name not in left_out} for line in lines]

    def keep(self, name: str, found: Mapping[str, Any]) -> None:
        """Into the JSON, beside the rows of the same budget that are there, and into the README."""
        with self._lock:
            report = json.loads(self.json.read_text()) if self.json.exists() else {}
            if report.get("about") != self.about:
                report = {}
            report |= {
                "date": f"{date.today()}",
                "machine": machine(),
                "command": self.command,
                "about": self.about,
            }
            if name == PIXELS:
                report[PIXELS] = found
            else:
                methods = report.get("methods", {}) | {name: found}
                report["methods"] = dict(sorted(methods.items(), key=lambda item: (item[1]["year"], item[0])))
            self.json.parent.mkdir(parents=True, exist_ok=True)
            self.json.write_text(json.dumps(report, indent=1) + "\n")
            if self.readme:
                self.readme.write_text(between(self.readme.read_text(), table(report)))


def assignments(point: Mapping[str, Any]) -> list[str]:
    return [f"{setting}={json.dumps(value)}" for setting, value in point.items()]


def chosen(trials: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The settings of the highest score, of equals the first. ValueError: no trial has one."""
    scored = [trial for trial in trials if "score" in trial]
    if not scored:
        raise ValueError(f"no trial has a score: {trials[0].get('failed')}")
    return dict(max(scored, key=lambda trial: trial["score"])["settings"])


def described(recipe: str) -> dict[str, Any]:
    """A row's head: the words of the recipe's first line, and the method with its year."""
    from vergence.methods.catalog import METHODS
    from vergence.pipelines.recipe import load_recipe
    from vergence.pipelines.shipped import file_of

    head = re.match(r"# (.+?) on CIFAR-10", file_of("recipe", recipe).read_text())
    name = load_recipe(recipe).method.name
    return {"title": head[1] if head else recipe, "method": name, "year": METHODS[name][1].about.year}


class Change(NamedTuple):
    """A figure before training, of several initialisations, and after, of one or several runs."""

    before: Sequence[float]
    after: Sequence[float]

    @property
    def is_above(self) -> bool:
        """Whether the trained mean is above the untrained one by more than the spread (max - min) of the latter."""
        return mean(self.after) - mean(self.before) > max(self.before) - min(self.before)

    def __str__(self) -> str:
        mark = "" if self.is_above else " ✗"
        return f"{_spread(self.before)} → **{_spread(self.after)}**{mark}"


def change(found: Mapping[str, Any], figure: str) -> Change:
    return Change(*([each[figure] for each in found[when]] for when in ("untrained", "runs")))


def _spread(values: Sequence[float]) -> str:
    whole = _share(mean(values))
    return whole if len(values) == 1 else f"{whole} ({_share(min(values))} to {_share(max(values))})"


def _share(value: float) -> str:
    return f"{value:.3f}".removeprefix("0")


def table(report: Mapping[str, Any]) -> str:
    """The README's table, with what must be known to read it."""
    about, methods = report["about"], report.get("methods", {})
    budget = about["budget"]
    trials = sorted({len(found["trials"]) for found in methods.values()})
    places = sorted({run["on"] for found in methods.values() for run in found["runs"]})
    jobs = sorted({run["jobs"] for found in methods.values() for run in found["runs"]})
    lines = [
        f"{budget['images']:,} images of CIFAR-10, {budget['epochs']} epochs, with `{' '.join(about['common'])}`, "
        f"{' or '.join(map(str, jobs))} at a time on {' or '.join(places)}. Each recipe is tuned by "
        f"{' or '.join(map(str, trials))} trials of {budget['trial_epochs']} epochs over {1 - budget['holdout']:.0%} of the "
        f"images, the other {budget['holdout']:.0%} choose by kNN (`benchmarks/methods_table.yaml`); the test set is used "
        f"once. Top-1 by `{KNN}` and `{LINEAR}`: mean of three untrained initialisations (least to most) → after "
        "training, with as much for three seeds. ✗: not above the untrained ones by more than their spread. Rank: "
        "effective rank of h on the test set. Images per CPU-second: one process on a core. Methods that need captions are "
        "left out. "
        f"`make methods-table`, {report['date']}.",
        "",
        "| method | year | kNN | linear | rank | images per CPU-second |",
        "|---|---|---|---|---|---|",
    ]
    if pixels := report.get(PIXELS):
        lines.append(f"| {PIXELS} | | {_share(pixels[KNN])} | {_share(pixels[LINEAR])} | | |")
    for found in methods.values():
        rank = change(found, "effective_rank")
        speed = mean(run["images_per_cpu_s"] for run in found["runs"])
        lines.append(
            f"| {found['title']} | {found['year']} | {change(found, KNN)} | {change(found, LINEAR)} | "
            f"{mean(rank.before):.0f} → {mean(rank.after):.0f} | {speed:.0f} |"
        )
    return "\n".join(lines)


def between(text: str, inner: str) -> str:
    """The text with `inner` between the two marks. ValueError: they are not there."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"README.md: needs the marks {BEGIN} and {END}")
    return f"{before}{BEGIN}\n{inner}\n{END}{after}"


def main() -> int:
    from vergence.platform import yaml

    parser = argparse.ArgumentParser(prog="make methods-table", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", metavar="NAME", help="recipes NAME-cifar10; default: all")
    parser.add_argument("--epochs", type=int, help="of a final run; default: of the plan")
    parser.add_argument("--images", type=int, help="of CIFAR-10's training set; default: of the plan")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, a core each")
    parser.add_argument("--gpu", action="store_true", help="train on one GPU, which all runs share")
    parser.add_argument("--small", action="store_true", help="minutes: proves only that everything works")
    options = parser.parse_args()
    plan = yaml.read(PLAN)
    there = rows(plan)
    unknown = [name for name in options.only or () if name not in there]
    if unknown:
        parser.error(f"there is no recipe {unknown[0]}{SUFFIX}; there are {', '.join(there)}")
    bench = Bench(plan, options, shlex.join(["python", "-m", "benchmarks.methods_table", *sys.argv[1:]]))
    failed: dict[str, Exception] = {}

    def fill(name: str) -> None:
        try:
            bench.keep(name, bench.pixels(asked[0]) if name == PIXELS else bench.row(there[name]))
            print(f"{name} is done", flush=True)
        except Exception as error:  # the other rows do not need this one
            failed[name] = error
            print(f"{name} failed: {type(error).__name__}: {error}", file=sys.stderr, flush=True)

    asked = [there[name] for name in options.only or there]
    names = [*(row.name for row in asked), PIXELS]
    with bench.ledger, ThreadPoolExecutor(len(names)) as pool:  # they wait, and the ledger's processes work
        list(pool.map(fill, names))
    if bench.json.exists():
        print(table(json.loads(bench.json.read_text())))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
