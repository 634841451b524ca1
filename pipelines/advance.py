"""A run from where it stands to its end: decide, train, hand over; MLflow is told all the while."""

import secrets
import shlex
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from types import MappingProxyType, TracebackType
from typing import Any, Literal, NamedTuple

from vergence.methods.method import Method
from vergence.pipelines.core import train
from vergence.pipelines.decide import Data, Done, HandOver, LookAtData, Refuse, Train, decide
from vergence.pipelines.filled import filled, shown
from vergence.pipelines.handover import hand_over
from vergence.pipelines.recipe import Recipe, build_method, flatten, pretrained
from vergence.pipelines.resolve import Resolved, data_facts, need_of, provenance, resolve
from vergence.pipelines.scale import found_for, with_scale
from vergence.platform import yaml
from vergence.platform.cluster import session
from vergence.platform.cluster.capacity import Found, check_local
from vergence.platform.cluster.preflight import asked
from vergence.platform.data.index import Index, open_index
from vergence.platform.errors import UserError
from vergence.platform.files import write_atomic
from vergence.platform.home import home
from vergence.platform.runs import commit as commits
from vergence.platform.runs.commit import Commit
from vergence.platform.runs.facts import RunFacts
from vergence.platform.runs.past import Past
from vergence.platform.runs.records import Event, Note
from vergence.platform.runs.run import Run
from vergence.platform.runs.stop import Stop
from vergence.platform.runs.track import Tracker
from vergence.platform.train.engine import expected_state
from vergence.platform.train.record import cut


class Planned(NamedTuple):
    """Everything is checked: this is what will be trained."""

    resolved: Resolved
    run: Run
    num_parameters: int  # that are trained
    place: session.Place  # of Ray
    found: Found | None = None  # on this machine, if it is the one that trains
    forked_from: str | None = None  # the run and step whose state this one begins with


class RunResult(NamedTuple):
    """How a run stands when the command returns."""

    run: Run
    status: Literal["finished", "paused", "interrupted"]
    commit: Commit | None  # the newest one; None if the run was stopped before its first step
    version: int | None  # of the registered model

    @property
    def score(self) -> float | None:
        """The monitor's score at the newest commit: kNN top-1 on the holdout or, as `commit.score_name` says, its rank."""
        return self.commit.score if self.commit else None


Observer = Callable[[Event | Planned], None]


class Part(NamedTuple):
    """What a run is a part of, and how far it is to go this time."""

    parent: str | None = None  # MLflow run of the whole
    pause_after: int | None = None  # epochs of the run; a paused run goes on from its commit


WHOLE = Part()


def advance(
    recipe: Recipe,
    run: Run,
    *,
    stop: Stop,
    observe: Observer,
    entered_s: float | None = None,
    part: Part = WHOLE,
) -> RunResult:
    """Do what is left of a run whose lock this process holds; nothing if it is complete.

    observe: gets the plan once, records as they come, and remarks, some of them from the tracker's thread.
    entered_s: Unix time at which the command began. Raises UserError, VergenceError.
    """
    past = Past.read(run)
    status: Literal["finished", "paused", "interrupted"]
    decision, index = decide(past, recipe), None
    if isinstance(decision, LookAtData):
        index = open_index(recipe.data.train, home() / "index", progress=True, images=bool(recipe.views))
        decision = decide(past, recipe, Data(index.digest, len(index)))
    match decision:
        case Refuse(reason):
            raise UserError(reason)
        case Train() if index is not None:
            stages = {"enter": entered_s or time.time()}
            status = _train(recipe, run, index, decision, stop, observe, stages, part)
        case HandOver() if index is not None:
            status = _complete(recipe, run, index, past, observe, part)
        case _:
            assert isinstance(decision, Done)
            observe(Note(f"run {run.name} is finished, nothing to do: {what_exists(recipe, run)}"))
            status = "finished"
    return RunResult(run, status, commits.newest(run.commits), run.facts().version)


def plan(recipe: Recipe, run: Run) -> Planned:
    """What would be trained, checked like a run; nothing is written."""
    past = Past.read(run)
    decision = decide(past, recipe)
    if isinstance(decision, Refuse):
        raise UserError(decision.reason)
    index = open_index(recipe.data.train, home() / "index", progress=True, images=bool(recipe.views))
    decision = decide(past, recipe, Data(index.digest, len(index)))
    if isinstance(decision, Refuse):
        raise UserError(decision.reason)
    kept, place, found = past.facts if past.has_begun else RunFacts(), session.place(), found_for(recipe)
    recipe = with_scale(recipe, found)
    with ExitStack() as ray:
        joined = _joined(recipe, ray)
        resolved, method = _resolved(recipe, run, index, kept, past.commit, joined)
        return _planned(resolved, run, method, place, found, past.commit)


def what_exists(recipe: Recipe, run: Run) -> str:
    """Where the results of a finished run are, and what can be done with them: a line, then one for each command."""
    if not recipe.size:
        return f"the encoder's weights in {run.exports}"  # no images: no verb takes it
    facts, name = run.facts(), recipe.track.register_as
    there = f"encoder in {run.exports}"
    encoder = run.name
    if name is not None and facts.version is not None:
        encoder = f"models:/{name}/{facts.version}"  # @champion may be another run's
        there += f", registered as {encoder}"
    shards = shlex.quote(recipe.data.train)
    last = (
        f"vergence embed {encoder} {shards} vectors.parquet"
        if facts.labelled is False
        else f"vergence evaluate {encoder} --train SHARDS --test SHARDS"
    )
    return f"{there}; next:\n  vergence look {encoder} {shards}\n  {last}"


def _train(
    recipe: Recipe,
    run: Run,
    index: Index,
    decision: Train,
    stop: Stop,
    observe: Observer,
    stages: dict[str, float],
    part: Part,
) -> Literal["finished", "paused", "interrupted"]:
    """From a decision to train to the handed-over encoder."""
    start, says, place, found = decision.commit, _sayer(observe), session.place(), found_for(recipe)
    recipe = with_scale(recipe, found)
    with ExitStack() as ray:
        joined = _joined(recipe, ray)
        start_step = start.step if start else 0
        resolved, method = _resolved(recipe, run, index, decision.kept, start, joined)
        if start is not None:
            _refuse_other_state(recipe, run, start, method)
        if decision.prolongs:
            run.remember(finished=False, tracked=False, version=None)  # what is there is of the shorter run
        if decision.forgets:
            run.forget()  # the MLflow run of an attempt that was a mistake, too
        layout = resolved.layout
        values = filled(recipe, layout, len(index))
        _keep(recipe, run, index, shown(recipe, values))
        run.initial_file.unlink(missing_ok=True)
        if resolved.initial is not None:
            resolved.initial.keep(run.initial_file)
            values["encoder.pretrained_sha256"] = resolved.initial.digest
        run.remember(
            precision=layout.precision, regime=layout.regime, micro=layout.micro, span=layout.norm_span
        )
        observe(_planned(resolved, run, method, place, found, start))
        cut(run.logs / "metrics.jsonl", start_step, start is not None and start.monitor_due)
        with _Tracked(recipe, run, index, says, part.parent, values) as tracked:
            stages |= {"checks": time.time()}
            if stop.is_asked:  # nothing is trained yet: no Ray is started for it
                tracked.status = "KILLED"
                return "interrupted"
            with ray:
                cluster = joined or ray.enter_context(session.opened(resolved.need))
                tracked.tracker.check()  # it has asked while Ray started
                outcome = train(
                    resolved,
                    run,
                    cluster,
                    stop=stop,
                    observe=observe,
                    stages=stages,
                    pause_after=part.pause_after,
                )
            if outcome.status == "paused" or outcome.status == "interrupted":
                tracked.status = "KILLED"
                return outcome.status
            hand_over(recipe, run, index, method, tracked.tracker, says)
            tracked.status = "FINISHED"
    says(f"done: {what_exists(recipe, run)}")
    return "finished"


def _sayer(observe: Observer) -> Callable[[str], None]:
    return lambda text: observe(Note(text))


def _complete(
    recipe: Recipe, run: Run, index: Index, past: Past, observe: Observer, part: Part
) -> Literal["finished"]:
    """Export, register and track what is missing of a trained run."""
    says = _sayer(observe)
    says(
        f"run {run.name} is trained, step {past.start_step:,}; exporting, registering and tracking what is missing"
    )
    _keep(recipe, run, index, yaml.dump(recipe.dump()))
    with _Tracked(recipe, run, index, says, part.parent) as tracked:
        hand_over(recipe, run, index, build_method(recipe, data_facts(recipe, index)), tracked.tracker, says)
        tracked.status = "FINISHED"
    says(f"done: {what_exists(recipe, run)}")
    return "finished"


class _Tracked:
    """A tracker around a block; MLflow's run ends as FAILED unless the block says otherwise."""

    def __init__(
        self,
        recipe: Recipe,
        run: Run,
        index: Index,
        says: Callable[[str], None],
        parent: str | None,
        values: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        """values: of settings that the recipe leaves open."""
        facts = provenance(recipe, index)
        tags = {name: str(facts[name]) for name in ("recipe_digest", "data_digest", "code_version")}
        if parent is not None:
            tags["mlflow.parentRunId"] = parent
        self.run, self.status = run, "FAILED"
        self.tracker = Tracker(run, recipe.track.experiment, {**flatten(recipe.dump()), **values}, tags, says)

    def __enter__(self) -> "_Tracked":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        files = {"plots": self.run.logs / "plots", "": self.run.recipe_file}
        self.run.remember(tracked=self.tracker.close(self.status, files))


def _joined(recipe: Recipe, ray: ExitStack) -> session.Session | None:
    """A session whose machines must be asked, joined; None where this machine trains: Ray may start later then."""
    if session.place() == "own":
        check_local(need_of(recipe))
    return ray.enter_context(session.opened(need_of(recipe))) if session.has_other_machines() else None


def _resolved(
    recipe: Recipe,
    run: Run,
    index: Index,
    kept: RunFacts,
    start: Commit | None,
    joined: session.Session | None,
) -> tuple[Resolved, Method]:
    """The checked plan, and the built method. A commit to start from has the weights: none are read then."""
    initial = None if start else pretrained(recipe)
    with asked(joined, run, index) if joined else nullcontext() as answer:
        facts = data_facts(recipe, index)
        method = build_method(recipe, facts, initial and initial.state)  # while the nodes answer
        machine = answer() if answer else None
    resolved = resolve(recipe, index, method, machine, kept, start)
    return replace(resolved, initial=initial), method


def _refuse_other_state(recipe: Recipe, run: Run, start: Commit, method: Method) -> None:
    """A fork may start from a run with other parameters or another optimiser."""
    misfit = commits.misfit(start, expected_state(method, recipe.optim))
    if misfit:
        raise UserError(
            f"run {run.name} cannot go on from {start.path}: {misfit}; a fork needs the same encoder, method and "
            "optimiser"
        )


def _keep(recipe: Recipe, run: Run, index: Index, text: str) -> None:
    """What the run is, in its folder; text: of the recipe."""
    run.logs.mkdir(parents=True, exist_ok=True)
    run.commits.mkdir(exist_ok=True)
    write_atomic(run.recipe_file, text)
    run.remember(
        id=run.facts().id or secrets.token_hex(8), data_digest=index.digest, labelled=index.has_labels
    )


def _planned(
    resolved: Resolved, run: Run, method: Method, place: session.Place, found: Found, start: Commit | None
) -> Planned:
    num_parameters = sum(parameter.numel() for parameter in method.parameters() if parameter.requires_grad)
    source = start.manifest.get("forked_from") if start else None
    return Planned(
        resolved,
        run,
        num_parameters,
        place,
        found if place == "own" else None,
        f"{source['run']} at step {source['step']:,}" if source else None,
    )
