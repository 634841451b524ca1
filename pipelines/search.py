"""A search from where it stands to its result: checked, trials trained by Ray Tune, table, plots and the winner."""

import secrets
import threading
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vergence.pipelines.recipe import OPERATIONAL, Recipe
from vergence.pipelines.search_result import Plan, SearchResult
from vergence.platform import yaml
from vergence.platform.cluster.capacity import Need, check_local, fits, physical_cpus
from vergence.platform.errors import UserError, VergenceError
from vergence.platform.files import write_atomic
from vergence.platform.home import home
from vergence.platform.runs.run import Run, locked, run_names
from vergence.platform.runs.stop import Stop
from vergence.platform.schema import SCHEMA
from vergence.platform.search.config import SearchConfig, assigned
from vergence.platform.search.objective import OBJECTIVES
from vergence.platform.search.trials import Trial, ranked, read_trials, write_trial
from vergence.platform.version import code_version

if TYPE_CHECKING:
    from vergence.pipelines.advance import Planned
    from vergence.platform.cluster.session import Session

Says = Callable[[str], None]

# what may not be searched, with the reason, besides what does not change the training at all
FIXED = {
    "epochs": "the epochs of a trial are search.budget.epochs",
    "schema": "it is the recipe's form",
    "data.holdout": "the score is measured on the holdout",
}
FEW = 10  # held-out samples below which a score says nothing


@dataclass(frozen=True)
class Search:
    """`home()/NAME`: search.yaml, trials in NNN/, table.json, best.yaml, plots/."""

    name: str
    recipe: Recipe  # the user's; trials have the search's epochs
    config: SearchConfig

    @property
    def folder(self) -> Path:
        return home() / self.name

    @property
    def best_file(self) -> Path:
        """The winner's recipe, at the full length of the user's."""
        return self.folder / "best.yaml"

    @cached_property
    def base(self) -> dict[str, Any]:
        """What the recipes of all trials share, as plain values."""
        return assigned(self.recipe.dump(), {"epochs": self.config.budget.epochs, "track.register": None})

    @cached_property
    def settled(self) -> Recipe:
        """The recipe with numbers in `scale`: where they are left open, trials share what is found."""
        if not self.recipe.scale.is_open:
            return self.recipe
        from vergence.pipelines.scale import found_for, trials_at_a_time, with_scale

        found = found_for(self.recipe)
        wanted = self.config.budget.concurrent or trials_at_a_time(self.recipe, found)
        return with_scale(self.recipe, found, trials=min(wanted, self.config.num_trials))

    @property
    def shared(self) -> dict[str, Any]:
        """The base with numbers in `scale`, as trials are trained."""
        return {**self.base, "scale": self.settled.scale.model_dump()}

    @property
    def need(self) -> Need:
        from vergence.pipelines.resolve import need_of

        return need_of(self.settled)

    def checked(self) -> "Search":
        """Itself. Raises UserError: a path or value that the recipe's schema does not take, or a missing extra."""
        from vergence.pipelines.trial import recipe_of

        if self.config.algorithm == "tpe":
            _require_optuna()
        for path, domain in self.config.domains.items():
            reason = _why_fixed(path)
            if reason is not None:
                raise UserError(f"search: {path} cannot be searched: {reason}")
            for value in domain.probes:
                recipe_of(self.base, {path: value}, f"search: {path}={value}")
        for parameters in self.config.planned():
            words = ", ".join(f"{path}={value}" for path, value in parameters.items())
            recipe_of(self.base, parameters, f"search: {words}")
        if self.recipe.commit.mirror is not None:
            raise UserError(
                "commit.mirror: runs have a mirror, searches have none; leave it out, and give it to the run that follows"
            )
        if self.name in run_names():
            raise UserError(
                f"--name {self.name}: there is a run of this name; give the search another --name"
            )
        return self

    def plan(self) -> Plan:
        """What would be done, checked against the data and the machine; nothing is written."""
        from vergence.pipelines.estimate import cpu_s_per_image, hours
        from vergence.pipelines.recipe import build_method
        from vergence.pipelines.resolve import data_facts
        from vergence.platform.cluster import session

        planned = self._planned()
        resolved = planned.resolved
        self._refuse_another(resolved.index.digest)
        concurrent = self._concurrent() if session.place() == "own" else (self.config.budget.concurrent or 1)
        method = build_method(resolved.recipe, data_facts(resolved.recipe, resolved.index))
        cpu_s, estimate = cpu_s_per_image(resolved, method), None
        if cpu_s is not None:
            images = self.config.epochs_at_most * resolved.plan.num_training
            scale = self.need.scale
            threads = concurrent * scale.workers * scale.cpus_per_worker
            estimate = hours(cpu_s, images, self._num_starts(), threads)
        return Plan(self, planned, concurrent, self.need._replace(trials=concurrent), estimate)

    def run(
        self, stop: Stop, says: Says, update: Callable[[list[Trial]], None], *, retry: bool = False
    ) -> SearchResult:
        """Do what is left of the search. update: gets the trials now and then, on this thread.

        Raises UserError, VergenceError; what is there by then is in the folder.
        """
        planned = self._planned()
        digest = planned.resolved.index.digest
        holder = Run(self.name)
        with locked(holder):
            facts = self._keep(digest)
            for trial in read_trials(self.folder) if retry else []:
                if trial.verdict == "dead":
                    write_trial(self.folder, trial.but(verdict="open", reason=None))
            if self._is_complete():
                says(f"search {self.name} is finished, nothing to do")
                return self._result("finished")
            return self._search(holder, facts, stop, says, update)

    def _search(
        self,
        holder: Run,
        facts: Mapping[str, Any],
        stop: Stop,
        says: Says,
        update: Callable[[list[Trial]], None],
    ) -> SearchResult:
        from vergence.platform.search.track import ParentRun

        mlflow = ParentRun(self.name, self.recipe.track.experiment, facts["id"], says)
        parent = mlflow.open(
            {**self._flat(), "trials": self.config.num_trials},
            {"search": self.name, "data_digest": facts["data_digest"], "code_version": code_version()},
        )
        status = "FAILED"
        try:
            self._train(holder, parent, stop, says, update)
            status = "KILLED" if stop.is_asked and not self._is_complete() else "FINISHED"
        except (KeyboardInterrupt, SystemExit):
            status = "KILLED"
            raise
        finally:
            result = self._result("finished" if status == "FINISHED" else "interrupted")
            best = result.winner
            metrics = (
                {} if best is None or best.score is None else {f"best_{self.config.objective}": best.score}
            )
            files = {"plots": self.folder / "plots"}
            files |= {"": self.folder / "table.json", "recipe": self.best_file}
            mlflow.close(status, {**metrics, "epochs": float(result.epochs)}, files)
        return result

    def _train(
        self, holder: Run, parent: str | None, stop: Stop, says: Says, update: Callable[[list[Trial]], None]
    ) -> None:
        """Every trial to its verdict, in a Ray session."""
        from vergence.platform.cluster import session

        stop_file = self.folder / f"STOP.{holder.attempt}"
        for left in self.folder.glob("STOP.*"):
            left.unlink()
        with ExitStack() as ray:
            need = self.need._replace(trials=1)
            if session.place() == "own":
                need = need._replace(trials=self._concurrent())
                check_local(need)
            cluster = ray.enter_context(session.opened(need))
            concurrent = need.trials if cluster.place == "own" else self._room(cluster)
            says(f"{concurrent} trials at a time: {need._replace(trials=concurrent).arithmetic()}")
            with stop.heard(stop_file.touch):
                searching = _Searching(self, holder.attempt, stop_file, parent, concurrent)
                searching.start()
                while searching.is_alive():
                    searching.join(0.5)
                    update(read_trials(self.folder))
        stop_file.unlink(missing_ok=True)
        if searching.failure is not None:
            raise VergenceError(
                f"search {self.name}: {_first_line(searching.failure)}"
            ) from searching.failure

    def _concurrent(self) -> int:
        """Trials at a time on this machine, if not asked for: as many as its CPUs, or GPUs, hold workers of."""
        scale = self.need.scale
        room = physical_cpus() // (scale.workers * scale.cpus_per_worker)
        if scale.gpus_per_worker:
            import torch

            room = torch.cuda.device_count() // scale.workers
        return min(self.config.num_trials, self.config.budget.concurrent or max(1, room))

    def _room(self, cluster: "Session") -> int:
        """Trials at a time on a cluster. UserError: it has not as much room as is asked for."""
        from vergence.platform.cluster.session import nodes

        there, wanted = nodes(), self.config.budget.concurrent
        if wanted is not None:
            lacks = fits(self.need._replace(trials=min(wanted, self.config.num_trials)), there)
            if lacks:
                raise UserError(f"search.budget.concurrent={wanted}: {lacks} in the Ray cluster; lower it")
            return min(wanted, self.config.num_trials)
        room = 1
        while room < self.config.num_trials and fits(self.need._replace(trials=room + 1), there) is None:
            room += 1
        return room

    def _planned(self) -> "Planned":
        """The first trial, resolved. Raises UserError: it cannot train, or the objective cannot be measured on it."""
        from vergence.pipelines.advance import plan
        from vergence.pipelines.trial import recipe_of

        first = next(iter(self.config.planned()), {p: d.probes[0] for p, d in self.config.domains.items()})
        planned = plan(recipe_of(self.shared, first, "search"), Run(f"{self.name}/first"))
        resolved, objective = planned.resolved, OBJECTIVES[self.config.objective]
        held = len(resolved.plan.holdout_ids()) if resolved.recipe.views else 0
        share = self.recipe.data.holdout
        if held < FEW:
            raise UserError(
                f"search: objective {self.config.objective} is measured on held-out images, and data.holdout="
                f"{share if share == 'auto' else format(share, 'g')} leaves {held}; set data.holdout=0.1, say"
            )
        if objective.labels and not resolved.index.has_labels:
            raise UserError(
                f"search: objective {self.config.objective} needs classes, and no sample of {self.recipe.data.train} "
                "has one; use search.objective=rankme"
            )
        return planned

    def _refuse_another(self, digest: str) -> dict[str, Any] | None:
        """What the folder keeps of this search; UserError: it keeps another one that has begun to train."""
        file = self.folder / "search.yaml"
        kept = yaml.read(file) if file.exists() else None
        if not isinstance(kept, dict) or not isinstance(kept.get("search"), dict):
            return None
        before, after = kept, self._facts(digest)
        paths = [
            f"{part}.{path} {flat_before.get(path)} -> {flat_after.get(path)}"
            for part in ("search", "recipe")
            for flat_before, flat_after in [(_flat(before[part]), _flat(after[part]))]
            for path in sorted(flat_before.keys() | flat_after.keys())
            if flat_before.get(path) != flat_after.get(path)
        ]
        if before.get("data_digest") != digest:
            paths.append(f"data {str(before.get('data_digest'))[:12]} -> {digest[:12]}")
        if not paths:
            return kept
        if any(self.folder.glob("[0-9]*/commits/step-*")):
            raise UserError(
                f"search {self.name} was started otherwise: {', '.join(paths)}; give the old values, or start a new "
                "search with --name NEW"
            )
        return None

    def _keep(self, digest: str) -> dict[str, Any]:
        """What the search is, in its folder; trials of a mistake that have trained nothing go."""
        kept = self._refuse_another(digest)
        if kept is not None:
            return kept
        import shutil

        for trial in self.folder.glob("[0-9][0-9][0-9]*"):
            shutil.rmtree(trial)
        facts = {"schema": SCHEMA, "id": secrets.token_hex(8), **self._facts(digest)}
        write_atomic(self.folder / "search.yaml", yaml.dump(facts))
        return facts

    def _facts(self, digest: str) -> dict[str, Any]:
        """What makes it this search: the search and what of the recipe changes the training."""
        return {"search": self.config.identity(), "recipe": self.recipe.identity(), "data_digest": digest}

    def _flat(self) -> dict[str, Any]:
        return _flat(self.config.dump()) | {f"recipe.{k}": v for k, v in self.recipe.identity().items()}

    def _is_complete(self) -> bool:
        trials = read_trials(self.folder)
        return len(trials) == self.config.num_trials and all(trial.verdict != "open" for trial in trials)

    def _num_starts(self) -> int:
        config = self.config
        if config.scheduler.name != "halving":
            return config.num_trials * len(config.rungs)
        return sum(config.survivors(rung) for rung in range(len(config.rungs)))

    def _result(self, status: Literal["finished", "interrupted"]) -> SearchResult:
        """Table, plots and the winner's recipe, written to the folder."""
        import json

        from vergence.platform.search import plots

        config = self.config
        trials = ranked(read_trials(self.folder), config.direction)
        result = SearchResult(self.name, config, status, trials, self.folder)
        write_atomic(self.folder / "table.json", json.dumps(result.dump(), indent=1) + "\n")
        if result.winner is not None:
            best = Recipe.parse(assigned(self.recipe.dump(), result.winner.parameters), "best.yaml")
            write_atomic(self.best_file, yaml.dump(best.dump()))
            plots.draw(self.folder / "plots", trials, config.domains, config.objective, config.direction)
        return result


class _Searching(threading.Thread):
    """Ray Tune's own run. On the main thread it would take the signal handlers."""

    def __init__(
        self, search: Search, attempt: str, stop_file: Path, parent: str | None, concurrent: int
    ) -> None:
        super().__init__(name="search", daemon=True)
        self.search, self.attempt, self.stop_file = search, attempt, stop_file
        self.parent, self.concurrent = parent, concurrent
        self.failure: Exception | None = None

    def run(self) -> None:
        import os

        from vergence.pipelines.trial import TrialWork
        from vergence.platform.search import tuner

        search = self.search
        work = TrialWork(
            search=search.name,
            home=str(home()),
            cwd=os.getcwd(),
            base=search.shared,
            objective=search.config.objective,
            direction=search.config.direction,
            stop_file=self.stop_file,
            parent=self.parent,
        )
        try:
            tuner.search(
                search.folder,
                search.config,
                work,
                concurrent=self.concurrent,
                is_asked=self.stop_file.exists,
                attempt=self.attempt,
            )
        except Exception as error:
            self.failure = error


def _why_fixed(path: str) -> str | None:
    """Why a setting cannot be searched; None if it can."""
    operational = any(path == name or path.startswith(f"{name}.") for name in OPERATIONAL)
    return FIXED.get(path) or ("it changes nothing of what is learnt" if operational else None)


def _flat(raw: Mapping[str, Any]) -> dict[str, Any]:
    from vergence.pipelines.recipe import flatten

    return flatten(raw)


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def _require_optuna() -> None:
    from importlib.util import find_spec

    if find_spec("optuna") is None:
        raise UserError("search: algorithm tpe is Optuna's: pip install 'vergence[tune]'")
