"""`vergence submit`: run a verb on a cluster, by the same words, and follow it to its end."""

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from vergence.pipelines.shipped import file_of
from vergence.platform import yaml
from vergence.platform.errors import UserError
from vergence.platform.jobs.job import Job, JobVerb
from vergence.platform.masking import masked
from vergence.platform.runs.run import valid_name

if TYPE_CHECKING:
    from vergence.pipelines.recipe import Recipe
    from vergence.platform.cluster.capacity import Need
    from vergence.platform.jobs.target import Target

VERBS: dict[JobVerb, str] = {
    "pretrain": "train an encoder; submitting it again goes on with the run",
    "tune": "search settings of a recipe; submitting it again goes on with the search",
    "embed": "write embeddings to parquet",
    "evaluate": "measure frozen encoders",
}
EPILOG = """\
examples:
  vergence submit pretrain simclr-cifar10 data.train="/data/cifar10/train-*.tar" --to ray --home /shared/runs
  vergence submit pretrain my.yaml --name first --to ray --address https://ray.example.org:8265 --detach
  vergence submit tune my.yaml my-search.yaml --name search --retrain --to ray --home /shared/runs
  vergence submit evaluate first --train /data/train --test /data/test --name first-knn --to ray \\
      --home /shared/runs
  vergence submit pretrain my.yaml --name first --to k8s --profile cluster.yaml
  vergence jobs logs -f first --to ray            follow it again
  vergence jobs stop first --to ray               it commits; the same submit goes on with it
  vergence submit --check k8s/                    check manifests without a cluster

The words are those of the verb; what follows a job ends with the job's exit code, and Ctrl-C leaves it running.
"""
# what each verb reads where it runs: options that name files or folders there
PATHS = {"embed": ("source", "out"), "evaluate": ("train", "test", "json")}


def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    parser.add_argument(
        "--check",
        metavar="FILE|FOLDER",
        type=Path,
        help="check Kubernetes manifests, or what a kustomization builds",
    )
    parser.add_argument(
        "--json", dest="as_json", action="store_true", help="with --check: the faults as JSON"
    )
    verbs = parser.add_subparsers(dest="job", metavar="|".join(VERBS))
    for verb, line in VERBS.items():
        subparser = verbs.add_parser(verb, help=line, conflict_handler="resolve")
        importlib.import_module(f"vergence.pipelines.{verb}").configure(subparser)
        own = [action for action in subparser._actions if action.dest != "dry_run"]
        subparser.set_defaults(words=partial(words, own))
        if verb in PATHS:
            subparser.add_argument("--name", required=True, help="name of the job")
        subparser.epilog = None
        add_place(subparser)
        where = subparser.add_argument_group("the job")
        where.add_argument(
            "--home",
            metavar="FOLDER",
            help="its state folder, which all nodes share (default: VERGENCE_HOME, if it is set here; k8s: the profile's)",
        )
        where.add_argument("--detach", action="store_true", help="print the job's id and do not follow it")
        where.add_argument("--dry-run", action="store_true", help="print what would be sent, send nothing")


def add_place(parser: argparse.ArgumentParser) -> None:
    """Options that say where jobs are."""
    where = parser.add_argument_group("where")
    where.add_argument(
        "--to",
        choices=("ray", "k8s"),
        required=True,
        help="ray: a Ray cluster that runs; k8s: Kubernetes with KubeRay",
    )
    where.add_argument(
        "--address",
        metavar="URL",
        help="of the Ray cluster's dashboard (default: RAY_API_SERVER_ADDRESS, else http://127.0.0.1:8265)",
    )
    where.add_argument(
        "--profile",
        metavar="FILE",
        type=Path,
        help="of the Kubernetes cluster: image, namespace, storage, queue ...",
    )


def place(options: argparse.Namespace) -> "Target":
    """The target that the options name."""
    if options.to == "k8s":
        from vergence.platform.jobs.kubernetes.jobs import KubernetesJobs
        from vergence.platform.jobs.kubernetes.profile import load_profile

        if options.profile is None:
            raise UserError("--to k8s: which cluster? give --profile FILE (docs/kubernetes.md has one)")
        return KubernetesJobs(load_profile(options.profile))
    from vergence.platform.jobs.ray import RayJobs

    return RayJobs(options.address)


def main(options: argparse.Namespace) -> int:
    if options.check:
        from vergence.pipelines.manifests import check

        return check(options.check, as_json=options.as_json)
    if options.job is None:
        raise UserError(f"submit: which verb? give one of {', '.join(VERBS)}, or --check FILE|FOLDER")
    if options.to == "ray" and options.home is None:
        options.home = os.environ.get("VERGENCE_HOME")
    target, job = place(options), job_of(options)
    if options.dry_run:
        print(target.preview(job), end="")
        return 0
    status = target.submit(job)
    if options.detach:
        print(status.id)
        return 0
    say(f"job {status.id} {status.state}")
    return follow(target, status.id, options.to)


def follow(target: "Target", id: str, to: str) -> int:
    """Print what the job prints, to its end; its exit code. Ctrl-C leaves it running."""
    try:
        for piece in target.logs(id, follow=True, says=say):
            print(piece, end="", flush=True)
    except KeyboardInterrupt:
        say(
            f"job {id} goes on; follow it by `vergence jobs logs -f {id} --to {to}`, or have it commit and end by "
            f"`vergence jobs stop {id} --to {to}`"
        )
        return 130
    status = target.status(id)
    say(f"job {status.id} {status.state}{': ' if status.reason else ''}{status.reason}")
    return status.code


def job_of(options: argparse.Namespace) -> Job:
    """The job that the words of a verb describe, checked as far as can be seen from here."""
    verb: JobVerb = options.job
    match verb:
        case "pretrain":
            return _pretrain(options)
        case "tune":
            return _tune(options)
    return _with_paths(verb, options)


def _pretrain(options: argparse.Namespace) -> Job:
    from vergence.pipelines.recipe import load_recipe
    from vergence.pipelines.resolve import need_of

    recipe = load_recipe(options.recipe, options.overrides)
    name = valid_name(options.name or file_of("recipe", options.recipe).stem)
    _refuse_relative_paths(recipe)
    options.recipe, options.overrides, options.name = "recipe.yaml", [], name
    return Job(
        name,
        "pretrain",
        options.words(options),
        {"recipe.yaml": yaml.dump(recipe.dump())},
        options.home,
        None if _left_to_ray(recipe, options) else need_of(recipe),
    )


def _tune(options: argparse.Namespace) -> Job:
    from vergence.pipelines.tune import asked

    search = asked(options.recipe, options.search, options.overrides, options.name)
    _refuse_relative_paths(search.recipe)
    options.recipe, options.search, options.overrides, options.name = (
        "recipe.yaml",
        "search.yaml",
        [],
        search.name,
    )
    files = {"recipe.yaml": yaml.dump(search.recipe.dump()), "search.yaml": yaml.dump(search.config.dump())}
    concurrent = search.config.budget.concurrent or 1
    need = None if _left_to_ray(search.recipe, options) else search.need
    return Job(search.name, "tune", options.words(options), files, options.home, need, concurrent)


def _left_to_ray(recipe: "Recipe", options: argparse.Namespace) -> bool:
    """Whether the command finds its scale in the cluster. UserError: pods are to be made for numbers."""
    if recipe.scale.is_open and options.to == "k8s":
        raise UserError(
            "submit --to k8s: scale.workers and scale.gpus_per_worker: auto is what a command finds, and pods are made "
            "before it starts, one a worker; give numbers, such as scale.workers=4 scale.gpus_per_worker=1"
        )
    return recipe.scale.is_open


def _with_paths(verb: JobVerb, options: argparse.Namespace) -> Job:
    for setting in PATHS[verb]:
        if (value := getattr(options, setting)) is not None:
            _refuse_relative(setting, str(value))
    for encoder in [options.encoder] if verb == "embed" else options.encoders:
        if encoder.endswith(".pt2"):
            _refuse_relative("encoder", encoder)
    name, words = valid_name(options.name), options.words(options)
    return Job(
        name, verb, words, home=options.home, need=_need_of_actors(options) if verb == "embed" else None
    )


def _need_of_actors(options: argparse.Namespace) -> "Need | None":
    """What the actors of `embed --workers` need; None: one process."""
    if options.workers is None:
        return None
    from vergence.pipelines.embed import gpus_of
    from vergence.platform.cluster.embed import need_of

    return need_of(options.workers, bool(gpus_of(options.workers, options.device)))


def _refuse_relative_paths(recipe: "Recipe") -> None:
    _refuse_relative("data.train", recipe.data.train)
    weights = recipe.encoder.pretrained
    if isinstance(weights, str) and weights.endswith((".safetensors", ".pt2")):  # else the name of a run
        _refuse_relative("encoder.pretrained", weights)


def _refuse_relative(what: str, path: str) -> None:
    if not Path(path).is_absolute() and "://" not in path:
        raise UserError(
            f"submit: {what}={path}: the job runs elsewhere; give the absolute path by which its nodes find it"
        )


def words(actions: Sequence[argparse.Action], options: argparse.Namespace) -> list[str]:
    """The command line that parses to `options`, as far as `actions` go; what is a default is left out."""
    positional: list[str] = []
    optional: list[str] = []
    for action in actions:
        value = getattr(options, action.dest, action.default)
        if value == action.default:
            continue
        values = [str(each) for each in value] if isinstance(value, list) else [str(value)]
        if not action.option_strings:
            positional += values
        else:
            optional += [action.option_strings[-1], *(values if action.nargs != 0 else [])]
    return positional + optional


def say(line: str) -> None:
    """One line for the user, on stderr; secrets in it are masked."""
    print(masked(line), file=sys.stderr, flush=True)
