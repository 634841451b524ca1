"""One trial of a search as a run: trained to the next rung by the same road as `vergence pretrain`, and measured."""

import contextlib
import math
import os
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from vergence.pipelines.recipe import Recipe
from vergence.platform.errors import VergenceError
from vergence.platform.home import home
from vergence.platform.runs.records import Tail
from vergence.platform.runs.run import Run, is_live, locked
from vergence.platform.runs.stop import Stop
from vergence.platform.search.config import assigned
from vergence.platform.search.objective import OBJECTIVES, Reading, reading
from vergence.platform.search.space import Parameters
from vergence.platform.search.trials import Result, Trial, name_of, read_trial, write_trial
from vergence.platform.search.tuner import Step

DYING_S = 90.0  # that a killed search's processes may take to let go of a trial
BANK = 20_000  # training samples, at most, from which `linear` learns


def recipe_of(base: Mapping[str, Any], parameters: Parameters, where: str) -> Recipe:
    """The recipe of a trial. Raises UserError: a path does not lead to a setting, or a value is not valid."""
    return Recipe.parse(assigned(dict(base), parameters), where)


@dataclass(frozen=True)
class TrialWork:
    """What a process of Ray Tune has to know to train any trial of a search."""

    search: str
    home: str
    cwd: str  # of the command: paths in the recipe may be relative
    base: Mapping[str, Any]  # the recipe that trials share
    objective: str
    direction: Literal["max", "min"]
    stop_file: Path
    parent: str | None  # MLflow run of the search

    def __call__(self, number: int, epochs: int) -> Step:
        """Bring a trial to so many epochs; what is done is not done again."""
        os.environ["VERGENCE_HOME"] = self.home
        with contextlib.suppress(OSError):  # another machine may not have it
            os.chdir(self.cwd)
        folder = home() / self.search
        trial = read_trial(folder, number)
        if trial.verdict == "open" and trial.at(epochs) is None:
            trial = self._trained(trial, epochs)
            write_trial(folder, trial)
        known = trial.at(epochs)
        worst = -math.inf if self.direction == "max" else math.inf
        score = worst if known is None or known.score is None else known.score
        return Step(epochs, score, over=known is None or trial.verdict != "open")

    def _trained(self, trial: Trial, epochs: int) -> Trial:
        """The trial after training; unchanged in its results if a stop was asked."""
        run, began = Run(name_of(self.search, trial.number)), time.monotonic()
        try:
            recipe = recipe_of(self.base, trial.parameters, run.name)
            self._let_go(run)
            status = self._advance(recipe, run, epochs)
            seconds = trial.seconds + time.monotonic() - began
            if status == "interrupted":
                return trial.but(seconds=seconds)
            found = self._measured(recipe, run, epochs)
        except VergenceError as error:
            seconds = trial.seconds + time.monotonic() - began
            return trial.but(verdict="dead", reason=str(error).splitlines()[0], seconds=seconds)
        result = Result(epochs=epochs, score=found.score, loss=found.loss, ended_s=time.time())
        return trial.but(
            results=(*trial.results, result),
            seconds=seconds,
            verdict="finished" if epochs >= recipe.epochs else "open",
        )

    def _let_go(self, run: Run) -> None:
        """Wait for a process of an attempt that was killed, which may live on for some seconds."""
        deadline = time.monotonic() + DYING_S
        while is_live(run.path) and time.monotonic() < deadline:
            time.sleep(0.5)

    def _advance(self, recipe: Recipe, run: Run, epochs: int) -> str:
        from vergence.pipelines.advance import Part, advance

        part, stop = Part(self.parent, epochs if epochs < recipe.epochs else None), Stop()
        with locked(run), passed_on(self.stop_file, stop):
            return advance(recipe, run, stop=stop, observe=lambda event: None, part=part).status

    def _measured(self, recipe: Recipe, run: Run, epochs: int) -> Reading:
        objective = OBJECTIVES[self.objective]
        with Tail(run.logs) as tail:
            found = reading(tail.read(), epochs, objective.of)
        return found if objective.of is not None else found._replace(score=linear(recipe, run))


@contextlib.contextmanager
def passed_on(stop_file: Path, stop: Stop) -> Iterator[None]:
    """Inside the block `stop` is asked as soon as the file is there, whichever process makes it."""
    over = threading.Event()

    def look() -> None:
        while not over.wait(0.5):
            if stop_file.exists():
                stop.ask()
                return

    thread = threading.Thread(target=look, name="stop of the search", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def linear(recipe: Recipe, run: Run) -> float | None:
    """Top-1 on the holdout of a linear classifier (linear-v1) on training samples, evenly spaced, 20,000 at most."""
    from vergence.pipelines.handover import trained
    from vergence.pipelines.recipe import build_method
    from vergence.pipelines.resolve import data_facts, plan_of
    from vergence.platform.data.index import open_index
    from vergence.platform.encoders.encoder import ModuleEncoder, usable
    from vergence.platform.evaluate.definitions import LINEAR
    from vergence.platform.evaluate.features import features
    from vergence.platform.evaluate.protocols import PROTOCOLS, Examples
    from vergence.platform.runs import commit as commits

    newest = commits.newest_intact(run.commits)
    assert newest is not None, "a run that has paused has a commit"
    index = open_index(recipe.data.train, home() / "index")
    plan, data = plan_of(recipe, index), recipe.data
    encoder = trained(build_method(recipe, data_facts(recipe, index)), newest)
    embedder = ModuleEncoder.of(encoder, run.name, size=recipe.size, mean=data.mean, std=data.std)
    device = usable("auto" if recipe.scale.gpus_per_worker else "cpu")
    some = np.unique(np.linspace(0, plan.num_training - 1, min(BANK, plan.num_training)).astype(np.int64))
    examples = []
    for ids in (plan.training_ids(some), plan.holdout_ids()):
        [found] = features([embedder], index, ids, device=device, threads=recipe.scale.cpus_per_worker)
        labels = index.labels(found.ids)
        assert labels is not None, "the objective was checked against the data"
        examples.append(Examples(found.rows[labels >= 0], labels[labels >= 0]))
    bank, test = examples
    if not len(bank.labels) or not len(test.labels):
        return None
    return PROTOCOLS[LINEAR.version].run(bank, test, device).top1
