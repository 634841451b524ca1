"""`vergence runs`: list, show, rename and delete runs; those of a mirror are listed and shown."""

import argparse
import json
import shutil
import sys
import time
from typing import Any

from pydantic import ValidationError
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from vergence.platform import yaml
from vergence.platform.errors import UserError, VergenceError, nearest
from vergence.platform.files import read_mapping
from vergence.platform.masking import masked
from vergence.platform.runs import commit as commits
from vergence.platform.runs.commit import CommitConfig
from vergence.platform.runs.past import Past, kept_recipe
from vergence.platform.runs.remote import Remote, runs_in
from vergence.platform.runs.run import Run, is_live, run_names, valid_name
from vergence.platform.text import below_here


def configure(parser: argparse.ArgumentParser) -> None:
    verbs = parser.add_subparsers(dest="what", metavar="list|show|rename|rm", required=True)
    listing = verbs.add_parser("list", help="all runs of the state folder (VERGENCE_HOME, default ./runs)")
    listing.add_argument(
        "--mirror", metavar="URL", help="those that a store has (commit.mirror), and who holds them"
    )
    listing.add_argument("--json", action="store_true", help="as JSON")
    show = verbs.add_parser("show", help="one run: state, commits, counts, recipe")
    show.add_argument("name", metavar="NAME")
    show.add_argument("--mirror", metavar="URL", help="as a store has it (commit.mirror)")
    show.add_argument("--json", action="store_true", help="as JSON")

    renaming = verbs.add_parser(
        "rename", help="give a run another name; its MLflow run and versions stay its own"
    )
    renaming.add_argument("name", metavar="NAME")
    renaming.add_argument("new", metavar="NEW")
    removing = verbs.add_parser("rm", help="delete a run's folder: commits, logs, exports")
    removing.add_argument("name", metavar="NAME")
    removing.add_argument("--yes", action="store_true", help="do not ask")
    parser.epilog = """\
examples:
  vergence runs list
  vergence runs list --mirror s3://BUCKET/runs
  vergence runs show mine --json
  vergence runs rename mine cats
  vergence runs rm cats --yes"""


def main(options: argparse.Namespace) -> int:
    match options.what:
        case "list" if options.mirror is not None:
            return _print_mirror(list_mirror(options.mirror), options.mirror, options.json)
        case "list":
            return _print_list(list_runs(), options.json)
        case "show" if options.mirror is not None:
            return _print_run(show_mirror(options.mirror, options.name), options.json)
        case "show":
            return _print_run(show_run(options.name), options.json)
        case "rename":
            path = rename(options.name, options.new).path
            print(f"{below_here(f'{path}')}: was {options.name}; go on with --name {options.new}")
            return 0
        case _:
            return _remove(options.name, options.yes)


def rename(name: str, new: str) -> Run:
    """Give a run that nobody works on another name. UserError: there is none, it is at work, or the name is taken."""
    run = _idle("rename", name)
    target = Run(valid_name(new, "runs rename"))
    if target.path.exists():
        raise UserError(f"runs rename: {target.path} is there already; choose another name")
    run.path.rename(target.path)
    return target


def remove(name: str) -> None:
    """Delete the folder of a run that nobody works on; what MLflow has of it stays. UserError as for `rename`."""
    shutil.rmtree(_idle("rm", name).path)


def _remove(name: str, sure: bool) -> int:
    run = _idle("rm", name)
    num_bytes = sum(path.stat().st_size for path in run.path.rglob("*") if path.is_file())
    if not sure:
        if not sys.stdin.isatty():
            raise UserError(f"runs rm {name}: deletes {decimal(num_bytes)} for good; give --yes")
        path = below_here(f"{run.path}")
        if input(f"delete {path}, {decimal(num_bytes)}, for good? [y/N] ").strip().lower() not in (
            "y",
            "yes",
        ):
            print("nothing was deleted")
            return 0
    version = run.facts().version
    remove(name)
    stays = f"; version {version} stays in the registry" if version is not None else ""
    print(f"{below_here(f'{run.path}')}: deleted, {decimal(num_bytes)}{stays}")
    return 0


def _idle(verb: str, name: str) -> Run:
    if name not in run_names():
        raise UserError(f"runs {verb}: there is no run {name!r} ({nearest(name, run_names())})")
    run = Run(name)
    if is_live(run.path):
        raise UserError(f"runs {verb}: a process is working on run {name}; stop it first")
    return run


def list_runs() -> list[dict[str, Any]]:
    """Facts of every run in the state folder."""
    return [_facts(name) for name in run_names()]


def list_mirror(url: str) -> list[dict[str, Any]]:
    """Facts of every run that a store has. Raises UserError: the store refuses, or cannot be listed; store.Away."""
    return [_facts_there(there) for there in runs_in(_mirror(url))]


def show_mirror(url: str, name: str) -> dict[str, Any]:
    """Facts of one run that a store has, with its resolved recipe. Raises UserError naming the nearest, store.Away."""
    found = {there.name: there for there in runs_in(_mirror(url))}
    if name not in found:
        raise UserError(f"runs show: {url} has no run {name!r} ({nearest(name, found)})")
    newest = next(found[name].whole(), None)
    return {**_facts_there(found[name]), "recipe": newest.manifest.get("recipe") if newest else None}


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
        "score_name": commit.score_name if commit and commit.score is not None else None,
        "counts": dict(commit.manifest["counts"]) if commit else {},
        "registered": facts.version,
        "failure": outcome.message if outcome and rest == "failed" else None,
        "path": str(run.path),
    }


def _mirror(url: str) -> str:
    """The URL. Raises UserError: no mirror can be there."""
    try:
        return CommitConfig(mirror=url).mirror or url
    except ValidationError as error:
        raise UserError(f"--mirror {url}: {error.errors()[0]['msg'].removeprefix('Value error, ')}") from None


def _facts_there(there: Remote) -> dict[str, Any]:
    whole, found = list(there.whole()), there.holder()
    newest, holder = whole[0] if whole else None, found.holder if found else None
    return {
        "name": there.name,
        "url": there.url,
        "method": newest.manifest["recipe"]["method"]["name"]
        if newest and "recipe" in newest.manifest
        else None,
        "step": newest.step if newest else 0,
        "score": newest.score if newest else None,
        "score_name": newest.score_name if newest and newest.score is not None else None,
        "finished": newest is not None and there.facts(newest).finished,
        "commits": [{"step": commit.step, "score": commit.score} for commit in reversed(whole)],
        "held_by": None
        if holder is None
        else {name: holder.get(name) for name in ("host", "pid", "renewed")},
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

    table = Table("run", "state", "method", "step", "kNN", "rank", "version", box=None)
    for run in runs:
        knn, rank = (_score(run, name) for name in ("knn", "h_effective_rank"))
        table.add_row(
            run["name"],
            run["state"],
            run["method"] or "",
            f"{run['step']:,}",
            knn,
            rank,
            str(run["registered"] or ""),
        )
    Console().print(table if runs else "no runs yet; start one with `vergence pretrain RECIPE`")
    return 0


def _print_mirror(runs: list[dict[str, Any]], url: str, as_json: bool) -> int:
    if as_json:
        print(json.dumps(runs, indent=1))
        return 0

    table = Table("run", "method", "step", "kNN", "rank", "commits", "held by", box=None)
    for run in runs:
        table.add_row(
            run["name"],
            run["method"] or "",
            f"{run['step']:,}{', finished' if run['finished'] else ''}",
            *(_score(run, name) for name in ("knn", "h_effective_rank")),
            str(len(run["commits"])),
            _held(run["held_by"]),
        )
    Console().print(
        table if runs else f"no runs in {masked(url)}; a run with commit.mirror={masked(url)} is copied there"
    )
    return 0


def _held(holder: dict[str, Any] | None) -> str:
    """By this machine's clock; the holder's may go otherwise."""
    if holder is None:
        return ""
    ago = f", {max(0.0, time.time() - holder['renewed']):.0f} s ago" if holder["renewed"] else ""
    return f"process {holder['pid']} on {holder['host']}{ago}"


def _score(run: dict[str, Any], name: str) -> str:
    """A run's score if it is this figure."""
    return f"{run['score']:.3f}" if run["score"] is not None and run["score_name"] == name else ""


def _print_run(run: dict[str, Any], as_json: bool) -> int:
    if as_json:
        print(json.dumps(run, indent=1))
        return 0

    print(yaml.dump(run), end="")
    return 0
