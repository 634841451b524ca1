"""What a user sees of a search: the plan, one live table while it goes on, and the result."""

import sys
from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.live import Live
from rich.table import Table

from vergence.pipelines import show
from vergence.pipelines.search import Search
from vergence.pipelines.search_result import Plan, SearchResult
from vergence.platform.home import home
from vergence.platform.runs.records import Monitored, Record, Tail
from vergence.platform.runs.run import is_live
from vergence.platform.search.config import SearchConfig
from vergence.platform.search.objective import OBJECTIVES
from vergence.platform.search.trials import Trial, name_of, ranked

WIDE = 200  # characters of a table in a file


def print_plan(plan: Plan) -> None:
    """Space, trials, epochs and hours, on stdout."""
    search, config = plan.search, plan.search.config
    rungs = " / ".join(map(str, config.rungs))
    spread = f"{config.epochs_at_least:,} to {config.epochs_at_most:,}"
    epochs = f"{config.epochs_at_most:,}" if config.epochs_at_least == config.epochs_at_most else spread
    full = config.num_trials * config.budget.epochs
    time = (
        "cannot be told beforehand"
        if plan.hours is None
        else f"about {plan.hours:.2g} hours at most, by steps timed here"
    )
    rows = {
        "objective": f"{config.objective}, {config.direction}: {OBJECTIVES[config.objective].words}",
        **{path: str(domain) for path, domain in config.domains.items()},
        "trials": f"{config.num_trials} by {config.algorithm}, {plan.concurrent} at a time: {plan.need.arithmetic()}",
        "rungs": f"{rungs} epochs" + ("" if len(config.rungs) == 1 else f", by {config.scheduler.name}"),
        "epochs": f"{epochs} over all trials ({full:,} if none is stopped early)",
        "time": time,
        "kept in": str(search.folder),
    }
    show.first_screen(plan.planned)
    width = max(map(len, rows))
    print(f"search {search.name}; above its first trial, below all of them")
    for name, text in rows.items():
        print(f"  {name:<{width}}  {text}")


def table(config: SearchConfig, trials: Sequence[Trial], lately: Mapping[int, str] | None = None) -> Table:
    """The trials, best first. lately: what those that train now have to say."""
    made = Table("trial", *config.space, config.objective, "loss", "epochs", "seconds", "", box=None)
    for trial in ranked(trials, config.direction):
        values = [_short(trial.parameters.get(path)) for path in config.space]
        state = (lately or {}).get(trial.number) or trial.reason or trial.verdict.replace("open", "waits")
        made.add_row(
            f"{trial.number:03d}",
            *values,
            _figure(trial.score, 4),
            _figure(trial.loss, 4),
            f"{trial.epochs}/{config.budget.epochs}",
            f"{trial.seconds:.0f}",
            state,
        )
    return made


def print_result(result: SearchResult) -> None:
    """The ranked table, what the least loss would have chosen beside it, and where the rest is; on stdout."""
    # where nobody sees how wide it is, nothing is cut
    Console(width=None if sys.stdout.isatty() else WIDE).print(table(result.config, result.trials))
    best, least = result.winner, result.least_loss
    if best is None:
        return
    full = result.config.num_trials * result.config.budget.epochs
    print(f"best        {_words(best)} · {result.config.objective} {_figure(best.score, 4)}")
    if least is not None:
        same = "the same" if least.number == best.number else _words(least)
        print(
            f"least loss  {same} · {result.config.objective} {_figure(least.score, 4)}: what the loss would have chosen"
        )
    print(f"epochs      {result.epochs:,} of {full:,}")
    print(f"recipe      {result.folder / 'best.yaml'}, encoder {name_of(result.name, best.number)}")
    print(f"pictures    {result.folder / 'plots'}")


class SearchScreen:
    """Shows a search on stderr while it goes on: one table on a terminal, a line a change elsewhere."""

    def __init__(self, search: Search) -> None:
        self.search, self._said, self._tails = search, dict[int, str](), dict[int, Tail]()
        self._lately: dict[int, str] = {}
        self._live = (
            Live(console=show.console, refresh_per_second=2, transient=True) if sys.stderr.isatty() else None
        )

    def __enter__(self) -> "SearchScreen":
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._live is not None:
            self._live.stop()
        for tail in self._tails.values():
            tail.close()

    def update(self, trials: Sequence[Trial]) -> None:
        for trial in trials:
            self._look(trial)
        if self._live is not None:
            self._live.update(table(self.search.config, trials, self._lately))
            return
        for trial in trials:
            line = self._line(trial)
            if line is not None and self._said.get(trial.number) != line:
                self._said[trial.number] = line
                show.say(line)

    def _look(self, trial: Trial) -> None:
        """What a trial that trains has just recorded."""
        run = home() / name_of(self.search.name, trial.number)
        if trial.verdict != "open" or not is_live(run):
            self._lately.pop(trial.number, None)
            return
        tail = self._tails.setdefault(trial.number, Tail(run / "logs"))
        records = tail.read()
        if records or trial.number not in self._lately:
            self._lately[trial.number] = _state(records) or self._lately.get(trial.number, "trains")

    def _line(self, trial: Trial) -> str | None:
        """A trial in one line; None as long as it has done nothing."""
        if trial.verdict == "open" and not trial.results:
            return None
        score = "" if trial.score is None else f" · {self.search.config.objective} {trial.score:.4f}"
        state = (
            ""
            if trial.verdict == "open"
            else f" · {trial.verdict}" + (f": {trial.reason}" if trial.reason else "")
        )
        return f"{_words(trial)} · {trial.epochs}/{self.search.config.budget.epochs} epochs{score}{state}"


def _state(records: Sequence[Record]) -> str | None:
    epochs = [record for record in records if isinstance(record, Monitored)]
    return f"trains, epoch {epochs[-1].epoch} done" if epochs else None


def _words(trial: Trial) -> str:
    values = ", ".join(f"{path} {_short(value)}" for path, value in trial.parameters.items())
    return f"trial {trial.number:03d} ({values})"


def _short(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _figure(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"
