"""`vergence pretrain`: train an encoder from a recipe, commit, export and register it."""

import argparse
from collections.abc import Sequence
from pathlib import Path

EPILOG = """\
examples:
  vergence pretrain simclr-cifar10 data.train="cifar10/train-*.tar"
  vergence pretrain simclr-cifar10 --dry-run               what would run, and with which memory
  vergence pretrain my.yaml --name second optim.lr=0.2     settings by dotted path; values are YAML
  vergence pretrain my.yaml --name OLD --fork NEW          start NEW from OLD's newest state

The same command goes on from the newest commit after any stop (Ctrl-C, kill, power cut), at the exact next
batch; when all is done it does nothing. All settings: `vergence methods --settings`.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    shipped = sorted(path.stem for path in (Path(__file__).parent / "recipes").glob("*.yaml"))
    parser.epilog = f"{EPILOG}\nShipped recipes: {', '.join(shipped)}"
    parser.add_argument(
        "recipe", metavar="RECIPE", help="a shipped recipe's name or the path of a .yaml file"
    )
    parser.add_argument(
        "overrides", metavar="KEY=VALUE", nargs="*", default=[], help="settings, e.g. batch.global=256"
    )
    parser.add_argument("--name", help="name of the run; default: the recipe's file name")
    parser.add_argument(
        "--fork", metavar="NEW", help="start the run NEW at step 0 from this run's newest state"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print the resolved recipe and plan, run nothing"
    )


def main(options: argparse.Namespace) -> int:
    return pretrain(
        options.recipe, options.overrides, name=options.name, fork=options.fork, dry_run=options.dry_run
    )


def pretrain(
    recipe: str,
    overrides: Sequence[str] = (),
    *,
    name: str | None = None,
    fork: str | None = None,
    dry_run: bool = False,
) -> int:
    """Train, or go on with, the run `name`; the exit code.

    Raises UserError for the user's mistakes, VergenceError for a run that failed.
    """
    from vergence.pipelines import attempt
    from vergence.pipelines.recipe import load_recipe, recipe_path
    from vergence.platform.errors import UserError
    from vergence.platform.home import home
    from vergence.platform.runs.run import Run, locked, valid_name
    from vergence.platform.text import printable

    if printable(str(home())) != str(home()):
        raise UserError(
            f"{printable(str(home()))}: torch and MLflow cannot write into a folder that is no UTF-8; set VERGENCE_HOME to "
            "another state folder"
        )
    parsed = load_recipe(recipe, overrides)
    run = Run(valid_name(name or recipe_path(recipe).stem))
    target = run if fork is None else Run(valid_name(fork))
    if dry_run:
        return attempt.dry_run(parsed, target)
    if fork is not None:
        attempt.fork(run, target)
    with locked(target):
        return attempt.Attempt(parsed, target).go()
