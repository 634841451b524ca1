"""Ray Tune around the trials of a search: who starts when, who goes on, and what is left of those that die.

A step of a Tune trial trains a run from its commit to the next rung and gives its workers back, so that Tune stops
or starts nobody in the middle of training. What is true is in the search's folder: Tune's own state is not restored,
it is made anew from the trials that are there.
"""

import itertools
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, NamedTuple

from ray import tune
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from vergence.platform.cluster.capacity import DRIVER_CPUS
from vergence.platform.search.config import SearchConfig
from vergence.platform.search.space import Choice, Range, Space
from vergence.platform.search.trials import Trial, promoted, read_trial, read_trials, write_trial

SCORE, EPOCHS, OVER = "score", "epochs", "over"


class Step(NamedTuple):
    """What a step of a trial gives: its epochs and score, the worst one if it has none; `over`: it is not to go on."""

    epochs: int
    score: float
    over: bool


Work = Callable[[int, int], Step]
"""(number of the trial, epochs): trains it so far, in the process of a Tune trial."""


def search(
    folder: Path,
    config: SearchConfig,
    work: Work,
    *,
    concurrent: int,
    is_asked: Callable[[], bool],
    attempt: str,
) -> None:
    """Bring every trial to its verdict, or return early after `is_asked` has become true.

    Ray is initialised, and has room for `concurrent` trials. Raises whatever Ray Tune raises.
    """
    shutil.rmtree(folder / "ray", ignore_errors=True)
    for number, parameters in enumerate(config.planned()):
        if not (folder / f"{number:03d}" / "trial.json").exists():
            write_trial(folder, Trial(number=number, parameters=parameters))
    tuner = _Tuner(folder, config, work, concurrent, is_asked, attempt)
    if config.scheduler.name == "halving":
        for rung, epochs in enumerate(config.rungs):
            tuner.run([epochs])
            if is_asked():
                return
            if rung + 1 < len(config.rungs):
                _halve(folder, config, rung)
    else:
        tuner.run(config.rungs)


def _halve(folder: Path, config: SearchConfig, rung: int) -> None:
    """Stop those that do not go on to the next rung."""
    trials, epochs = read_trials(folder), config.rungs[rung]
    kept = promoted(trials, epochs, config.survivors(rung + 1), config.direction)
    for trial in trials:
        if trial.verdict == "open" and trial.number not in kept:
            write_trial(
                folder, trial.but(verdict="stopped", reason=f"not among the best after {epochs} epochs")
            )


class _Tuner:
    """One Tune experiment after the other over the open trials of a search."""

    def __init__(
        self,
        folder: Path,
        config: SearchConfig,
        work: Work,
        concurrent: int,
        is_asked: Callable[[], bool],
        attempt: str,
    ) -> None:
        self.folder, self.config, self.work, self.concurrent = folder, config, work, concurrent
        self.is_asked = is_asked
        self._names = (f"{attempt}-{n}" for n in itertools.count())

    def run(self, rungs: Sequence[int]) -> None:
        """Train all open trials to these rungs, in turn, as the scheduler lets them."""
        trials = read_trials(self.folder)
        waiting = [trial for trial in trials if trial.verdict == "open" and trial.at(rungs[-1]) is None]
        optuna = _Optuna(self.config, trials) if self.config.algorithm == "tpe" else None
        more = self.config.num_trials - len(trials) if optuna else 0
        if not waiting and not more:
            return
        tuner = tune.Tuner(
            tune.with_resources(bound(self.work, rungs), {"CPU": DRIVER_CPUS}),
            tune_config=tune.TuneConfig(
                search_alg=Queue(self.folder, waiting, optuna, more, self.is_asked),
                scheduler=scheduler(self.config, trials),
                num_samples=len(waiting) + more,
                max_concurrent_trials=self.concurrent,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                name=next(self._names),
                storage_path=str(self.folder / "ray"),
                callbacks=[Verdicts(self.folder)],
                verbose=0,
            ),
        )
        tuner.fit()


class Steps(tune.Trainable):
    """A trial as Tune sees it: each step is a rung. `bound` gives it what to do."""

    work: ClassVar[Work]
    rungs: ClassVar[Sequence[int]]

    def setup(self, config: dict[str, Any]) -> None:
        self.number, self.rung = config["number"], 0

    def reset_config(self, config: dict[str, Any]) -> bool:
        self.setup(config)
        return True

    def step(self) -> dict[str, Any]:
        epochs = self.rungs[self.rung]
        self.rung += 1
        step = type(self).work(self.number, epochs)
        over = step.over or self.rung == len(self.rungs)
        return {EPOCHS: step.epochs, SCORE: step.score, OVER: over, "done": over}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        pass  # its run has commits

    def load_checkpoint(self, checkpoint: Any) -> None:
        pass


def bound(work: Work, rungs: Sequence[int]) -> type[Steps]:
    """The trainable: a class of its own, which travels by value."""
    return type("TrialSteps", (Steps,), {"work": staticmethod(work), "rungs": list(rungs)})


class Queue(Searcher):
    """Hands out the open trials by number, then what Optuna proposes; nothing once a stop is asked."""

    def __init__(
        self,
        folder: Path,
        waiting: Sequence[Trial],
        optuna: "_Optuna | None",
        more: int,
        is_asked: Callable[[], bool],
    ) -> None:
        super().__init__()
        self.folder, self.waiting, self.optuna, self.more = folder, list(waiting), optuna, more
        self.is_asked, self.numbers = is_asked, dict[str, int]()

    def set_search_properties(
        self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any
    ) -> bool:
        return True

    def suggest(self, trial_id: str) -> Any:
        if self.is_asked():
            return Searcher.FINISHED
        if self.waiting:
            number = self.waiting.pop(0).number
        elif self.optuna is not None and self.more:
            number, self.more = len(read_trials(self.folder)), self.more - 1
            write_trial(self.folder, Trial(number=number, parameters=self.optuna.ask(number)))
        else:
            return Searcher.FINISHED
        self.numbers[trial_id] = number
        return {"number": number}

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        if self.optuna is not None:
            self.optuna.tell(read_trial(self.folder, self.numbers[trial_id]), result)

    def save(self, checkpoint_path: str) -> None:
        pass  # made anew from the folder

    def restore(self, checkpoint_path: str) -> None:
        pass


class _Optuna:
    """Ray Tune's OptunaSearch; of choices it sees the place in the list, since a value may be a whole section."""

    def __init__(self, config: SearchConfig, trials: Sequence[Trial]) -> None:
        import optuna
        from ray.tune.search.optuna import OptunaSearch

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.space = config.domains
        # as many proposals as there were give another one than the first
        seed = config.seed + 1000 * len(trials)
        self.inner = OptunaSearch(distributions(self.space), metric=SCORE, mode=config.direction, seed=seed)
        self._asked = set[int]()
        for trial in trials:
            if trial.verdict != "open":
                self._add(trial)

    def ask(self, number: int) -> dict[str, Any]:
        self._asked.add(number)
        proposed = self.inner.suggest(str(number))
        assert proposed is not None, "the study has a space"
        return {path: _value(domain, proposed[path]) for path, domain in self.space.items()}

    def tell(self, trial: Trial, result: Mapping[str, Any] | None) -> None:
        if trial.number in self._asked:
            finite = result is not None and math.isfinite(result.get(SCORE, math.nan))
            self.inner.on_trial_complete(str(trial.number), dict(result) if result and finite else None)
        else:
            self._add(trial)

    def _add(self, trial: Trial) -> None:
        """What an earlier attempt has proposed, with what came of it."""
        if trial.score is not None and trial.verdict != "dead":
            point = {path: _place(self.space[path], value) for path, value in trial.parameters.items()}
            self.inner.add_evaluated_point(point, trial.score)


def distributions(space: Space) -> dict[str, Any]:
    """The domains as Optuna's."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    def one(domain: Choice | Range) -> Any:
        if isinstance(domain, Choice):
            return CategoricalDistribution(range(len(domain.values)))
        if domain.kind == "integer":
            return IntDistribution(int(domain.low), int(domain.high))
        return FloatDistribution(domain.low, domain.high, log=domain.kind == "loguniform")

    return {path: one(domain) for path, domain in space.items()}


def _value(domain: Choice | Range, proposed: Any) -> Any:
    if isinstance(domain, Choice):
        return domain.values[proposed]
    return int(proposed) if domain.kind == "integer" else domain.rounded(proposed)


def _place(domain: Choice | Range, value: Any) -> Any:
    return domain.values.index(value) if isinstance(domain, Choice) else value


def scheduler(config: SearchConfig, trials: Sequence[Trial]) -> TrialScheduler:
    """Tune's scheduler; ASHA knows what the trials that are over have scored at their rungs."""
    if config.scheduler.name != "asha":
        return FIFOScheduler()
    asha = AsyncHyperBandScheduler(
        time_attr=EPOCHS,
        metric=SCORE,
        mode=config.direction,
        max_t=config.budget.epochs,
        grace_period=config.scheduler.first,
        reduction_factor=config.scheduler.factor,
    )
    for trial in trials:
        if trial.verdict in ("stopped", "finished"):
            past: Any = SimpleNamespace(trial_id=f"past-{trial.number}")
            nobody: Any = None  # it has no controller any more, and none is asked
            asha.on_trial_add(nobody, past)
            for result in trial.results:
                if result.score is not None:
                    asha.on_trial_result(nobody, past, {EPOCHS: result.epochs, SCORE: result.score})
    return asha


class Verdicts(tune.Callback):
    """Marks the trials that the scheduler has stopped, and those whose process has died."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        known = read_trial(self.folder, trial.config["number"])
        if known.verdict == "open" and not trial.last_result.get(OVER, True):
            write_trial(
                self.folder,
                known.but(verdict="stopped", reason=f"not among the best after {known.epochs} epochs"),
            )

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        known = read_trial(self.folder, trial.config["number"])
        if known.verdict == "open":
            write_trial(self.folder, known.but(verdict="dead", reason=_cause(trial)))


def _cause(trial: Any) -> str:
    """Why Tune has lost a trial, in one line."""
    try:
        lines = Path(trial.error_file or "").read_text(errors="replace").strip().splitlines()
    except OSError:
        lines = []
    if any("ActorDied" in line or "actor died" in line for line in lines):
        return "its process died"
    return (lines or ["its process died"])[-1]
