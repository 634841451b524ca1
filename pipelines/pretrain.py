"""`vergence pretrain`: train an encoder from a recipe, commit, export and register it."""

import argparse
import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import TYPE_CHECKING

import psutil

from vergence.pipelines.shipped import file_of, shipped
from vergence.platform.errors import UserError
from vergence.platform.home import home
from vergence.platform.runs.run import Run, locked, valid_name
from vergence.platform.runs.stop import Stop
from vergence.platform.text import printable

if TYPE_CHECKING:
    from vergence.pipelines.advance import Observer, RunResult
    from vergence.pipelines.recipe import Recipe

EPILOG = """\
examples:
  vergence pretrain simclr-cifar10 data.train="cifar10/train-*.tar"
  vergence pretrain simclr-cifar10 --dry-run               what would run, and with which memory
  vergence pretrain my.yaml --name second optim.lr=0.2     settings by dotted path; values are YAML
  vergence pretrain my.yaml --name OLD --fork NEW          start NEW from OLD's newest state
  vergence pretrain my.yaml commit.mirror=s3://BUCKET/runs copy its commits: another machine can go on with it

The same command goes on from the newest commit after any stop (Ctrl-C, kill, power cut), at the exact next
batch; when all is done it does nothing. All settings: `vergence methods --settings`.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = f"{EPILOG}\nShipped recipes: {', '.join(shipped('recipe'))}"
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
    from vergence.pipelines import show

    if options.dry_run:
        return _dry_run(options)
    stop = Stop()
    with show.Screen() as screen, interrupts(stop, screen.stopping) as interrupt:
        result = _pretrain(
            *_asked(options.recipe, options.overrides, options.name, options.fork),
            stop,
            screen.observe,
            psutil.Process().create_time(),
        )
    if result.status == "finished":
        return 0
    show.say(show.stopped(result.commit.step if result.commit else 0))
    return 128 + (interrupt.signal or signal.SIGTERM)  # no signal: the machine is to be taken away


def pretrain(
    recipe: "str | Recipe",
    overrides: Sequence[str] = (),
    *,
    name: str | None = None,
    fork: str | None = None,
    stop: Stop | None = None,
    observe: "Observer | None" = None,
) -> "RunResult":
    """Train, or go on with, a run until it is complete or stopped; on any thread, in any Ray session.

    Args:
        recipe: a shipped recipe's name, the path of a .yaml file, or a `Recipe`, which needs `name`.
        overrides: settings as `path.to.setting=value`; values are YAML.
        name: of the run; default: the recipe's file name.
        fork: start a run of this name at step 0 from the newest state of run `name`.
        stop: asks the run to commit and return.
        observe: gets the plan once, each record as it comes, and remarks, some from another thread.
    Prints nothing, but a bar on stderr if new shards take long to scan; leaves a Ray session that was there, signal
    handlers and the environment as they are.
    Raises UserError for the user's mistakes, VergenceError for a run that failed.
    """
    parsed, run, source = _asked(recipe, overrides, name, fork)
    return _pretrain(parsed, run, source, stop or Stop(), observe or _ignore, time.time())


def _pretrain(
    recipe: "Recipe", run: Run, source: Run | None, stop: Stop, observe: "Observer", entered_s: float
) -> "RunResult":
    """source: the run to fork from, if any."""
    from vergence.pipelines.advance import advance
    from vergence.platform.runs.fork import fork, unfork
    from vergence.platform.runs.mirror import is_mirrored, mirrored
    from vergence.platform.runs.records import Note

    # another machine may have begun it: then the run it was forked from need not be here
    is_new = source is not None and not is_mirrored(run, recipe.commit) and fork(source, run)
    try:
        with locked(run), mirrored(run, recipe.commit, stop, lambda text: observe(Note(text))):
            return advance(recipe, run, stop=stop, observe=observe, entered_s=entered_s)
    except UserError:
        if is_new:
            unfork(run)
        raise


def _asked(
    recipe: "str | Recipe", overrides: Sequence[str], name: str | None, fork: str | None
) -> "tuple[Recipe, Run, Run | None]":
    """Recipe, run, and the run to fork from. Raises UserError."""
    from vergence.pipelines.recipe import load_recipe

    if printable(str(home())) != str(home()):
        raise UserError(
            f"{printable(str(home()))}: torch and MLflow cannot write into a folder that is no UTF-8; set VERGENCE_HOME to "
            "another state folder"
        )
    if isinstance(recipe, str):
        parsed, default = load_recipe(recipe, overrides), file_of("recipe", recipe).stem
    elif name is None or overrides:
        raise UserError("pretrain: a Recipe comes with a name, and with its settings made")
    else:
        parsed, default = recipe, name
    run = Run(valid_name(name or default))
    if (run.path / "search.yaml").exists():
        raise UserError(f"--name {run.name}: there is a search of this name; give the run another --name")
    return (parsed, run, None) if fork is None else (parsed, Run(valid_name(fork)), run)


def _dry_run(options: argparse.Namespace) -> int:
    """Print what the run would be."""
    from vergence.pipelines import show
    from vergence.pipelines.advance import plan
    from vergence.pipelines.filled import filled, shown

    parsed, run, _ = _asked(options.recipe, options.overrides, options.name, options.fork)
    planned = plan(parsed, run)
    show.first_screen(planned)
    recipe = planned.resolved.recipe
    print(shown(recipe, filled(recipe, planned.resolved.layout, planned.resolved.plan.num_samples)), end="")
    return 0


def _ignore(event: object) -> None:
    pass


class Interrupt:
    """The first SIGINT or SIGTERM asks a run that trains to commit and return; else, or again, it ends at once."""

    def __init__(self, stop: Stop, says: Callable[[str], None]) -> None:
        self.stop, self.says, self.signal = stop, says, 0

    def handle(self, number: int, frame: FrameType | None) -> None:
        if self.signal:
            raise SystemExit(128 + number)
        self.signal, trains = number, self.stop.is_heard
        self.stop.ask()  # also for what is raised in the middle of a library, which may swallow it
        if not trains:
            raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)
        self.says(f"{signal.Signals(number).name}: committing, then stopping (once more to stop at once)")


@contextlib.contextmanager
def interrupts(stop: Stop, says: Callable[[str], None]) -> Iterator[Interrupt]:
    """Signals ask for a stop inside the block; elsewhere than on the main thread Python takes no handlers."""
    interrupt = Interrupt(stop, says)
    on_main = threading.current_thread() is threading.main_thread()
    numbers = (signal.SIGINT, signal.SIGTERM) if on_main else ()
    previous = {number: signal.signal(number, interrupt.handle) for number in numbers}
    try:
        yield interrupt
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
