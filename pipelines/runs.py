"""`vergence runs`: list and show runs."""

import argparse
import json
from typing import Any

from rich.console import Console
from rich.table import Table

from vergence.platform import yaml
from vergence.platform.errors import UserError, VergenceError, nearest
from vergence.platform.files import read_mapping
from vergence.platform.runs import commit as commits
from vergence.platform.runs.past import Past, kept_recipe
from vergence.platform.runs.run import Run, is_live, run_names


def configure(parser: argparse.ArgumentParser) -> None:
    verbs = parser.add_subparsers(dest="what", metavar="list|show", required=True)
    listing = verbs.add_parser("list", help="all runs of the state folder (VERGENCE_HOME, default ./runs)")
    listing.add_argument("--json", action="store_true", help="as JSON")
    show = verbs.add_parser("show", help="one run: state, commits, counts, recipe")
    show.add_argument("name", metavar="NAME")
    show.add_argument("--json", action="store_true", help="as JSON")


def main(options: argparse.Namespace) -> int:
    if options.what == "list":
        return _print_list(list_runs(), options.json)
    return _print_run(show_run(options.name), options.json)


def list_runs() -> list[dict[str, Any]]:
    """Facts of every run in the state folder."""
    return [_facts(name) for name in run_names()]


def show_run(name: str) -> dict[str, Any]:
    """Facts of one run with its commits and resolved recipe.

    Raises UserError naming the nearest run, VergenceError naming what is damaged.
    """
    run = Run(name)
    if name not in run_names():
        raise UserError(f"runs show: there is no run {name!r} ({nearest(name, run_names())})")
    damage, facts = _damage(run), _facts(name)
    if damage:
        raise VergenceError(
            f"run {name} is damaged: {', '.join(damage)} {'is' if len(damage) == 1 else 'are'} not whole; give its "
            f"`vergence pretrain` command again, it goes on from step {facts['step']:,}"
        )
    whole = [commits.read(path) for path in sorted(run.commits.glob("step-*"))]
    listed = [{"step": commit.step, "score": commit.score} for commit in whole if commit]
    return {**facts, "commits": listed, "recipe": yaml.read(run.recipe_file)}


def _facts(name: str) -> dict[str, Any]:
    run = Run(name)
    past = Past.read(run)
    commit, facts, outcome = past.commit, past.facts, past.outcome
    failed = outcome is not None and outcome.status == "failed"
    rest = "finished" if facts.finished else "failed" if failed else "stopped"
    return {
        "name": name,
        "state": "running" if is_live(run.path) else "damaged" if _damage(run) else rest,
        "method": past.recipe["method"]["name"] if past.recipe else None,
        "step": past.start_step,
        "score": commit.score if commit else None,
        "counts": dict(commit.manifest["counts"]) if commit else {},
        "registered": facts.version,
        "failure": outcome.message if outcome and rest == "failed" else None,
        "path": str(run.path),
    }


def _damage(run: Run) -> list[str]:
    """What a power cut has left half or nothing of, relative to the run's folder."""

    small = [run.path / "run.json", run.path / "lock.json"]
    damaged = [path for path in small if path.exists() and read_mapping(path) is None]
    damaged += [] if kept_recipe(run) else [run.recipe_file]
    damaged += [path for path in sorted(run.commits.glob("step-*")) if commits.read(path) is None]
    return [str(path.relative_to(run.path)) for path in damaged]


def _print_list(runs: list[dict[str, Any]], as_json: bool) -> int:
    if as_json:
        print(json.dumps(runs, indent=1))
        return 0

    table = Table("run", "state", "method", "step", "monitor", "version", box=None)
    for run in runs:
        score = "" if run["score"] is None else f"{run['score']:.3f}"
        table.add_row(
            run["name"],
            run["state"],
            run["method"] or "",
            f"{run['step']:,}",
            score,
            str(run["registered"] or ""),
        )
    Console().print(table if runs else "no runs yet; start one with `vergence pretrain RECIPE`")
    return 0


def _print_run(run: dict[str, Any], as_json: bool) -> int:
    if as_json:
        print(json.dumps(run, indent=1))
        return 0

    print(yaml.dump(run), end="")
    return 0
