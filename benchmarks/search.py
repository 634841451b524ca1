"""Searches with figures of their own: temperature of SimCLR, momentum of MoCo v2, successive halving beside the grid.

OMP_NUM_THREADS=1 python -m benchmarks.search [temperature|momentum|halving|grid ...] [--small]

5,000 images of CIFAR-10, 3,500 of them for training, 1,500 for the score; about an hour of CPU for all. What is done
is not done again: the same command goes on. The driver of `halving` is killed with kill -9 in the middle, once, and
started again. Figures go to benchmarks/results/search.json, the picture to docs/search.png; with --small, which
proves only that everything works, to build/bench.
"""

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import data
from benchmarks.__main__ import machine
from vergence.platform import yaml
from vergence.platform.search.trials import read_trials

HOLDOUT = 0.3
COMMON = [
    "scale.workers=1",
    "batch.global=128",
    f"data.holdout={HOLDOUT}",
    "track.register=null",
    "track.every_steps=3",
]
MOCO = ["method.queue_size=2048"]  # of 3,500 training images
NINE = {
    "method.temperature": {"choice": [0.1, 0.2, 0.5]},
    "optim.lr": {"choice": [0.06, 0.12, 0.48]},
}
KILL_AFTER = 5  # results of `halving`, of 13


class Experiment(NamedTuple):
    recipe: str
    settings: Sequence[str]
    search: Mapping[str, Any]


EXPERIMENTS = {
    "temperature": Experiment(
        "simclr-cifar10",
        COMMON,
        {"space": {"method.temperature": {"choice": [0.02, 0.1, 0.2, 0.5, 2]}}, "budget": {"epochs": 10}},
    ),
    "momentum": Experiment(
        "mocov2-cifar10",
        [*COMMON, *MOCO],
        {"space": {"method.momentum": {"choice": [0, 0.9, 0.99, 0.999]}}, "budget": {"epochs": 10}},
    ),
    "halving": Experiment(
        "simclr-cifar10", COMMON, {"space": NINE, "scheduler": {"name": "halving"}, "budget": {"epochs": 9}}
    ),
    "grid": Experiment("simclr-cifar10", COMMON, {"space": NINE, "budget": {"epochs": 9}}),
}
SMALL: dict[str, dict[str, Any]] = {
    # what differs with --small, on 1,000 images
    "temperature": {"space": {"method.temperature": {"choice": [0.1, 2]}}, "budget": {"epochs": 1}},
    "momentum": {"space": {"method.momentum": {"choice": [0.9]}}, "budget": {"epochs": 1}},
    "halving": {"space": {"optim.lr": {"choice": [0.06, 0.12, 0.48]}}, "budget": {"epochs": 3}},
    "grid": {"space": {"optim.lr": {"choice": [0.06, 0.12, 0.48]}}, "budget": {"epochs": 3}},
}


class Bench:
    """Where a run of this script keeps things."""

    def __init__(self, small: bool) -> None:
        self.small = small
        self.home = data.CACHE / ("search-small" if small else "search")
        self.results = self.home / "search.json" if small else Path("benchmarks/results/search.json")
        self.picture = self.home / "search.png" if small else Path("docs/search.png")
        self.num_images = 1_000 if small else 5_000
        self.kill_after = 1 if small else KILL_AFTER

    def result(self, name: str) -> dict[str, Any]:
        """What `vergence tune` has found, with the command and the seconds of this attempt."""
        experiment = EXPERIMENTS[name]
        searched = {**experiment.search, **(SMALL[name] if self.small else {})}
        file = self.home / f"{name}.yaml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(yaml.dump(searched))
        settings = [f"data.train={data.shards_of(self.num_images)}", *experiment.settings]
        arguments = ["tune", experiment.recipe, str(file), *settings, "--name", name, "--json"]
        killed = self._killed(arguments, name) if name == "halving" else None
        began = time.monotonic()
        found: dict[str, Any] = json.loads(self._vergence(arguments))
        found["seconds_of_the_last_attempt"] = round(time.monotonic() - began)
        found["search"] = searched
        found["command"] = shlex.join(["vergence", *arguments]).replace(f"{data.CACHE}/", "")
        return found if killed is None else {**found, "killed_after_results": killed}

    def _environment(self) -> dict[str, str]:
        return {**os.environ, "VERGENCE_HOME": str(self.home)}

    def _vergence(self, arguments: Sequence[str]) -> str:
        command = [sys.executable, "-m", "vergence.pipelines.cli", *arguments]
        done = subprocess.run(command, env=self._environment(), stdout=subprocess.PIPE, text=True, check=True)
        return done.stdout

    def _killed(self, arguments: Sequence[str], name: str) -> int:
        """Start the search and kill its driver with -9 after some results, once; how many there were."""
        mark = self.home / f"{name}.killed"
        if not mark.exists():
            command = [sys.executable, "-m", "vergence.pipelines.cli", *arguments]
            process = subprocess.Popen(command, env=self._environment(), stdout=subprocess.DEVNULL)
            while (count := self._num_results(name)) < self.kill_after:
                if process.poll() is not None:
                    raise RuntimeError(f"the search ended with {process.returncode} before it was killed")
                time.sleep(0.2)
            process.send_signal(signal.SIGKILL)
            process.wait()
            mark.write_text(f"{count}\n")
        return int(mark.read_text())

    def _num_results(self, name: str) -> int:
        return sum(len(trial.results) for trial in read_trials(self.home / name))


def compared(found: Mapping[str, Any]) -> dict[str, Any]:
    """Halving beside the grid: the scores of what each has chosen, and their epochs."""
    halving, grid = found["halving"], found["grid"]
    by_parameters = {json.dumps(trial["parameters"], sort_keys=True): trial for trial in grid["trials"]}
    chosen = by_parameters[json.dumps(halving["winner"]["parameters"], sort_keys=True)]
    return {
        "score_of_the_best_of_the_grid": grid["winner"]["score"],
        "score_of_what_halving_chose": halving["winner"]["score"],
        "the_same_in_the_grid": chosen["score"],
        "points_behind": 100 * (grid["winner"]["score"] - halving["winner"]["score"]),
        "share_of_the_epochs": halving["epochs"] / grid["epochs"],
        "seconds": {name: found[name]["seconds"] for name in ("halving", "grid")},
    }


def draw(found: Mapping[str, Any], path: Path) -> None:
    """Score over temperature and over momentum, and the best so far of halving and grid over epochs."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    from vergence.platform.search.plots import position, spent, ticks
    from vergence.platform.search.space import parse_space
    from vergence.platform.search.trials import Trial

    figure, axes = pyplot.subplots(1, 3, figsize=(12.5, 3.6), layout="constrained")
    for axis, name, title in zip(
        axes, ("temperature", "momentum"), ("SimCLR, temperature", "MoCo v2, momentum")
    ):
        if name not in found:
            continue
        ((setting, domain),) = parse_space(found[name]["search"]["space"], name).items()
        trials = sorted(found[name]["trials"], key=lambda trial: trial["parameters"][setting])
        # momenta crowd at 1: they stand side by side
        places = [
            position(domain, trial["parameters"][setting]) if domain.is_log else place
            for place, trial in enumerate(trials)
        ]
        axis.plot(places, [trial["score"] for trial in trials], "o-")
        for key, style in (("winner", "C3*"), ("least_loss", "kx")):
            there = [trial["number"] for trial in trials].index(found[name][key]["number"])
            axis.plot(
                places[there], trials[there]["score"], style, markersize=12, label=key.replace("_", " ")
            )
        if domain.is_log:
            ticks(axis, domain)
        else:
            axis.set_xticks(places, [f"{trial['parameters'][setting]:g}" for trial in trials])
        axis.set(title=title, xlabel=setting, ylabel="kNN on the holdout")
    for name in ("grid", "halving"):
        if name in found:
            trials_of = [
                Trial.model_validate({k: t[k] for k in Trial.model_fields}) for t in found[name]["trials"]
            ]
            axes[2].step(*spent(trials_of, "max"), where="post", label=name)
    axes[2].set(title="nine configurations", xlabel="epochs of all trials", ylabel="best kNN so far")
    for axis in axes:
        axis.grid(alpha=0.3)
        if axis.lines:
            axis.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("experiments", nargs="*", choices=[*EXPERIMENTS, []], help="default: all")
    parser.add_argument("--small", action="store_true", help="minutes: proves only that everything works")
    options = parser.parse_args()
    bench = Bench(options.small)
    found: dict[str, Any] = {}
    if bench.results.exists():
        found = json.loads(bench.results.read_text())["experiments"]
    for name in options.experiments or EXPERIMENTS:
        found[name] = bench.result(name)
        report: dict[str, Any] = {"date": f"{date.today()}", "machine": machine(), "experiments": found}
        if {"halving", "grid"} <= found.keys():
            report["halving_beside_grid"] = compared(found)
        bench.results.parent.mkdir(parents=True, exist_ok=True)
        bench.results.write_text(json.dumps(report, indent=1).replace(f"{data.CACHE}/", "") + "\n")
        draw(found, bench.picture)
        best, least = found[name]["winner"], found[name]["least_loss"]
        print(
            f"{name}: best {best['parameters']} {best['score']:.4f}; least loss {least['parameters']} {least['score']:.4f}"
        )
    if "halving_beside_grid" in report:
        print(json.dumps(report["halving_beside_grid"], indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
