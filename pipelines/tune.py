"""`vergence tune`: search settings of a recipe; each trial is a run, the search goes on after any stop."""

import argparse
import json
import signal
from collections.abc import Sequence
from typing import TYPE_CHECKING

from vergence.pipelines.shipped import file_of, shipped

if TYPE_CHECKING:
    from vergence.pipelines.search import Search
    from vergence.pipelines.search_result import SearchResult
    from vergence.platform.runs.stop import Stop

EPILOG = """\
examples:
  vergence tune simclr-cifar10 simclr-temperature data.train="cifar10/train-*.tar" --dry-run
  vergence tune simclr-cifar10 simclr-temperature data.train="cifar10/train-*.tar"
  vergence tune my.yaml my-search.yaml --name second search.budget.epochs=9 optim.lr=0.2
  vergence tune my.yaml my-search.yaml --retrain --json    then train the winner at the recipe's full length

KEY=VALUE sets the recipe; search.KEY=VALUE sets the search. The same command goes on after any stop (Ctrl-C, kill,
power cut): finished trials are not run again, the others go on from their commits. A trial is the run NAME/NNN,
so `vergence evaluate NAME/003 ...` takes it.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = f"{EPILOG}\nShipped searches: {', '.join(shipped('search'))}"
    parser.add_argument(
        "recipe", metavar="RECIPE", help="a shipped recipe's name or the path of a .yaml file"
    )
    parser.add_argument(
        "search", metavar="SEARCH", help="a shipped search's name or the path of a .yaml file"
    )
    parser.add_argument(
        "overrides", metavar="KEY=VALUE", nargs="*", default=[], help="settings, e.g. search.budget.epochs=9"
    )
    parser.add_argument("--name", help="name of the search; default: the search's file name")
    parser.add_argument(
        "--dry-run", action="store_true", help="check everything, print space, trials, epochs and hours"
    )
    parser.add_argument(
        "--json", action="store_true", help="print the result (or the plan) as JSON on stdout"
    )
    parser.add_argument(
        "--retrain", action="store_true", help="train the winner at the recipe's full length and register it"
    )
    parser.add_argument("--retry", action="store_true", help="try the trials again that have died")


def main(options: argparse.Namespace) -> int:
    from vergence.pipelines import show
    from vergence.pipelines.pretrain import interrupts
    from vergence.pipelines.tune_screen import SearchScreen, print_plan, print_result
    from vergence.platform.runs.stop import Stop

    search = asked(options.recipe, options.search, options.overrides, options.name)
    if options.dry_run:
        plan = search.plan()
        print(json.dumps(plan.dump(), indent=1)) if options.json else print_plan(plan)
        return 0
    stop = Stop()
    with interrupts(stop, show.say) as interrupt, SearchScreen(search) as screen:
        result = search.run(stop, show.say, screen.update, retry=options.retry)
    print(json.dumps(result.dump(), indent=1)) if options.json else print_result(result)
    if result.status == "interrupted":
        show.say("stopped; the same command goes on from there")
        return 128 + (interrupt.signal or signal.SIGTERM)
    if result.winner is None:
        show.say("no trial has a score; the table says why")
        return 1
    return _retrain(search) if options.retrain else 0


def tune(
    recipe: str,
    search: str,
    overrides: Sequence[str] = (),
    *,
    name: str | None = None,
    retry: bool = False,
    stop: "Stop | None" = None,
) -> "SearchResult":
    """Do what is left of a search, in the Ray session of this process if it has one; prints nothing.

    Args:
        recipe, search: names of shipped ones, or paths of .yaml files.
        overrides: settings as `path.to.setting=value` of the recipe, `search.path=value` of the search.
        name: of the search; default: the search's file name.
        retry: try the trials again that have died.
        stop: asks the trials to commit and the search to return.
    Raises UserError for the user's mistakes, VergenceError for a search that failed.
    """
    from vergence.platform.runs.stop import Stop

    found = asked(recipe, search, overrides, name)
    return found.run(stop or Stop(), lambda line: None, lambda trials: None, retry=retry)


def asked(recipe: str, search: str, overrides: Sequence[str], name: str | None) -> "Search":
    """The search that a command means, checked against the recipe's schema. Raises UserError."""
    from vergence.pipelines.recipe import load_recipe, override
    from vergence.pipelines.search import Search
    from vergence.platform import yaml
    from vergence.platform.runs.run import valid_name
    from vergence.platform.search.config import parse_search

    path = file_of("search", search)
    own = [each.removeprefix("search.") for each in overrides if each.startswith("search.")]
    config = parse_search(override(yaml.read(path), own), path.name)
    parsed = load_recipe(recipe, [each for each in overrides if not each.startswith("search.")])
    return Search(valid_name(name or path.stem), parsed, config).checked()


def _retrain(search: "Search") -> int:
    """The winner's recipe at its full length, as a run of its own."""
    from vergence.pipelines.pretrain import main as pretrain

    options = argparse.Namespace(
        recipe=str(search.best_file), overrides=[], name=f"{search.name}-best", fork=None, dry_run=False
    )
    return pretrain(options)
