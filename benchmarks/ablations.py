"""The papers' ablations at a small budget, ours beside theirs, as one page.

make ablations                                  all of ablations.yaml; the same command goes on
make ablations ABLATIONS="--only simsiam dino --jobs 2"
make ablations ABLATIONS="--jobs 16 --gpu"      all runs on one GPU, side by side
OMP_NUM_THREADS=1 python -m benchmarks.ablations --small         minutes: proves only that everything works

Results go to benchmarks/results/ablations.json, and from there to docs/ablations.md and its pictures. Nothing is tuned for
a published outcome: the settings come from the trials of the table of methods, one seed, the test set of CIFAR-10.
"""

import argparse
import json
import math
import os
import shlex
import sys
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks import data
from benchmarks.__main__ import machine
from benchmarks.methods_table import KNN, LINEAR, SUFFIX
from benchmarks.methods_table import PLAN as TABLE

PLAN = Path(__file__).with_name("ablations.yaml")
SMALL = {"images": 640, "epochs": 1}
FIGURES = (KNN, LINEAR, "h_std", "effective_rank")


class Bench:
    """One use of this script."""

    def __init__(self, plan: Mapping[str, Any], small: bool, jobs: int, gpu: bool) -> None:
        from benchmarks.experiments import Ledger, Sets
        from vergence.platform import yaml

        self.plan, self.budget = plan["ablations"], SMALL if small else plan["budget"]
        self.table = yaml.read(TABLE)
        self.common = [*self.table["common"], *(["scale.gpus_per_worker=1"] if gpu else [])]
        folder = data.CACHE / ("ablations-small" if small else "ablations")
        self.json = folder / "ablations.json" if small else Path("benchmarks/results/ablations.json")
        self.page = folder / "ablations.md" if small else Path("docs/ablations.md")
        os.environ["VERGENCE_HOME"] = str(folder / "home")
        test = data.shards_of(256, first=20_000) if small else data.pack_parquet("test")
        self.sets = Sets(data.shards_of(self.budget["images"]), test)
        self.ledger = Ledger(folder / "ledger.jsonl", jobs, lambda text: print(text, flush=True))
        self._lock = threading.Lock()

    def ablation(self, name: str) -> dict[str, Any]:
        """Its plan with what was found: each variant, and three encoders before their first step."""
        asked = self.plan[name]
        recipe = asked["recipe"] + SUFFIX
        base = [
            *self.common,
            *asked.get("settings", ()),
            f"epochs={self.budget['epochs']}",
            "data.holdout=0",
        ]
        finals = [[*base, *variant.get("settings", ())] for variant in asked["variants"].values()]
        seeds = [[*base, f"seed={seed}"] for seed in range(self.table["untrained"])]
        trained, began = (
            self._figures(kind, recipe, each) for kind, each in (("final", finals), ("untrained", seeds))
        )
        variants = {
            label: {**variant, **found} for (label, variant), found in zip(asked["variants"].items(), trained)
        }
        plan = {key: value for key, value in asked.items() if key != "reading"}
        return {**plan, "base": base, "variants": variants, "untrained": began}

    def _figures(self, kind: Any, recipe: str, runs: Sequence[Sequence[str]]) -> list[dict[str, Any]]:
        from benchmarks.experiments import Work

        lines = self.ledger.results([Work(kind, recipe, tuple(settings), self.sets) for settings in runs])
        kept = (*FIGURES, "metrics", "failed", "on", "jobs", "code")
        return [{name: value for name, value in line.items() if name in kept} for line in lines]

    def keep(self, name: str, found: Mapping[str, Any]) -> None:
        """Into the JSON, the page and its picture."""
        with self._lock:
            report = json.loads(self.json.read_text()) if self.json.exists() else {}
            if report.get("budget") != self.budget:
                report = {}
            done = report.get("ablations", {}) | {name: found}
            report |= {
                "date": f"{date.today()}",
                "machine": machine(),
                "command": shlex.join(["python", "-m", "benchmarks.ablations", *sys.argv[1:]]),
                "budget": self.budget,
                "ablations": {each: done[each] for each in self.plan if each in done},
            }
            self.json.parent.mkdir(parents=True, exist_ok=True)
            self.json.write_text(json.dumps(report, indent=1) + "\n")
            draw(found, self.page.parent / "ablations" / f"{name}.png")
            self.page.write_text(page(report))


def page(report: Mapping[str, Any]) -> str:
    """The page in Markdown."""
    from vergence.platform import yaml

    budget, found, plan = report["budget"], report["ablations"], yaml.read(PLAN)["ablations"]
    lines = [
        "# Ablations",
        "",
        f"The papers' ablations on CIFAR-10, ours beside theirs: {budget['images']:,} images, {budget['epochs']} epochs, "
        "ResNet-18 of width 0.25, one seed; settings, where some are named, from the trials of the table of methods "
        "(README). A paper's figure is top-1 in percent of a linear classifier on ImageNet unless its source says "
        "otherwise: orders and collapses compare, numbers do not. Nothing is tuned for an outcome. Columns: top-1 by "
        f"`{KNN}` and `{LINEAR}` on the test set; std of unit h times √d (0: all alike) and effective rank of h there; "
        "what the method told at its last step. "
        f"Written by `make ablations` from `benchmarks/results/ablations.json`, {report['date']}; plan in "
        "`benchmarks/ablations.yaml`.",
    ]
    for name, one in found.items():
        settings = f" with `{' '.join(one['settings'])}`" if "settings" in one else ""
        lines += ["", f"## {one['title']}", "", f"{one['recipe']}{SUFFIX}{settings}; {one['source']}.", ""]
        lines += [f"![{one['title']}](ablations/{name}.png)", "", *section(one), ""]
        if reading := plan.get(name, {}).get("reading"):
            lines += [reading, ""]
        lines += [trained_on(one)]
    if left := [one["title"] for name, one in plan.items() if name not in found]:
        lines += ["", "## Not run yet", "", "; ".join(left) + "."]
    return "\n".join(lines) + "\n"


def trained_on(found: Mapping[str, Any]) -> str:
    """Which variants were trained where, as a sentence."""
    places: dict[str, list[str]] = {}
    for label, variant in found["variants"].items():
        places.setdefault(variant["on"], []).append(label)
    told = [
        place + (f" ({', '.join(labels)})" if len(places) > 1 else "") for place, labels in places.items()
    ]
    return f"Trained on {' and '.join(told)}."


def section(found: Mapping[str, Any]) -> list[str]:
    """The table of one ablation."""
    metrics = found.get("metrics", ())
    lines = [
        f"| variant | kNN | linear | std | rank | {''.join(f'{name} | ' for name in metrics)}paper |",
        "|---|---|---|---|---|" + "---|" * (len(metrics) + 1),
    ]
    untrained = {figure: mean(each[figure] for each in found["untrained"]) for figure in FIGURES}
    lines.append(
        f"| untrained, mean of {len(found['untrained'])} | {_cells(untrained)} | {'| ' * (len(metrics) + 1)}".rstrip()
    )
    for label, variant in found["variants"].items():
        told = (
            [variant["metrics"][metric] for metric in metrics]
            if "metrics" in variant
            else [math.nan] * len(metrics)
        )
        own = "not finite | | | |" if "failed" in variant else f"{_cells(variant)} |"
        paper = "—" if variant["paper"] is None else variant["paper"]
        lines.append(f"| {label} | {own} {''.join(f'{value:.3g} | ' for value in told)}{paper} |")
    if "ln_k" in found:
        outputs = next(
            int(setting.partition("=")[2])
            for setting in reversed(found["base"])
            if setting.startswith(f"method.{found['ln_k']}=")
        )
        lines += ["", f"ln K = {math.log(outputs):.3g}."]
    return lines


def _cells(figures: Mapping[str, float]) -> str:
    knn, linear, std, rank = (figures[name] for name in FIGURES)
    return f"{knn:.3f} | {linear:.3f} | {std:.2f} | {rank:.0f}"


def draw(found: Mapping[str, Any], path: Path) -> None:
    """kNN and linear of each variant, the untrained encoders as lines, and beside them the paper's, if it has any."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    variants = {label: each for label, each in found["variants"].items() if "failed" not in each}
    theirs = {
        label: each["paper"] for label, each in variants.items() if isinstance(each["paper"], int | float)
    }
    size = 9 if theirs else 5, 0.8 + 0.5 * len(variants)
    figure, axes = pyplot.subplots(1, 2 if theirs else 1, figsize=size, layout="constrained", squeeze=False)
    ours, *paper = axes[0]
    for i, (protocol, colour) in enumerate(((KNN, "C0"), (LINEAR, "C1"))):
        places = [place + 0.4 * i for place in range(len(variants))]
        ours.barh(
            places, [100 * each[protocol] for each in variants.values()], 0.4, color=colour, label=protocol
        )
        ours.axvline(100 * mean(each[protocol] for each in found["untrained"]), color=colour, linestyle="--")
    ours.set_yticks([place + 0.2 for place in range(len(variants))], list(variants))
    ours.set_title("ours (dashed: untrained)")
    figure.legend(*ours.get_legend_handles_labels(), loc="outside lower left", ncols=2, fontsize="small")
    for axis in paper:
        axis.barh(list(theirs), list(theirs.values()), 0.6, color="C7")
        axis.set_title("paper")
    for axis in (ours, *paper):
        axis.invert_yaxis()
        axis.set_xlabel("top-1, percent")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


def main() -> int:
    from vergence.platform import yaml

    parser = argparse.ArgumentParser(prog="make ablations", description=(__doc__ or "").splitlines()[0])
    plan = yaml.read(PLAN)
    parser.add_argument(
        "--only", nargs="+", metavar="NAME", choices=[*plan["ablations"]], help="default: all"
    )
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, a core each")
    parser.add_argument("--gpu", action="store_true", help="train on one GPU, which all runs share")
    parser.add_argument("--small", action="store_true", help="minutes: proves only that everything works")
    options = parser.parse_args()
    bench = Bench(plan, options.small, options.jobs, options.gpu)
    failed: dict[str, Exception] = {}

    def fill(name: str) -> None:
        try:
            bench.keep(name, bench.ablation(name))
            print(f"{name} is done", flush=True)
        except Exception as error:  # the others do not need this one
            failed[name] = error
            print(f"{name} failed: {type(error).__name__}: {error}", file=sys.stderr, flush=True)

    names = options.only or plan["ablations"]
    with bench.ledger, ThreadPoolExecutor(len(names)) as pool:  # they wait, and the ledger's processes work
        list(pool.map(fill, names))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
