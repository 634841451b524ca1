"""One attempt at a run: from the checks to training, export and registration."""

import secrets
import signal
import time
from typing import Any

import numpy as np
import psutil

from vergence.methods.method import Method
from vergence.pipelines import show
from vergence.pipelines.recipe import Recipe, build_method, recipe_of
from vergence.pipelines.resolve import Resolved, data_facts, resolve
from vergence.platform import yaml
from vergence.platform.augment.sheet import contact_sheet
from vergence.platform.augment.views import Views
from vergence.platform.cluster import session
from vergence.platform.data.index import Index, open_index
from vergence.platform.data.plan import HOLDOUT_RULE
from vergence.platform.data.read import Reader
from vergence.platform.encoders.export import EncoderCard, export_encoder
from vergence.platform.encoders.registry import register
from vergence.platform.errors import UserError, VergenceError
from vergence.platform.files import write_atomic
from vergence.platform.home import home
from vergence.platform.mlflow_errors import explain
from vergence.platform.mlflow_store import tracking_uri
from vergence.platform.runs import commit as commits
from vergence.platform.runs import plots
from vergence.platform.runs.records import Tail
from vergence.platform.runs.run import Run, locked, run_names
from vergence.platform.runs.track import Tracker
from vergence.platform.train.engine import expected_state
from vergence.platform.train.job import Outcome
from vergence.platform.train.record import cut


def dry_run(recipe: Recipe, run: Run) -> int:
    """Print what the run would be."""
    attempt = Attempt(recipe, run)
    index = attempt.index()
    resolved, method = attempt.resolve(index)
    show.first_screen(resolved, run, attempt.start_step(), method)
    print(yaml.dump(resolved.recipe.dump()), end="")
    return 0


def fork(old: Run, new: Run) -> None:
    """Give `new`, unless it has begun, the newest state of `old` as its commit at step 0."""
    source = commits.newest_intact(old.commits)
    if source is None:
        raise UserError(f"--fork: run {old.name} has no commit to start from; runs: {', '.join(run_names())}")
    if commits.newest(new.commits) is None:
        with locked(new):
            facts = {
                **source.manifest,
                "run": {"id": secrets.token_hex(8)},  # another run: its MLflow run and version are its own
                "step": 0,
                "score": None,
                "monitor_due": False,
                "holdout_rule": HOLDOUT_RULE,
                "counts": dict.fromkeys(source.manifest["counts"], 0),
                "forked_from": {"run": old.name, "step": source.step},
            }
            commits.write(new.commits, commits.load_state(source), facts, new.attempt, owned=lambda: True)


class Attempt:
    """One call of the command, on a run whose lock we hold."""

    def __init__(self, recipe: Recipe, run: Run) -> None:
        self.recipe, self.run = recipe, run

    def go(self) -> int:
        """Train what is left, then export and register what is missing; the exit code."""
        index = None if self._is_finished() and self._is_asked_again() else self.index()
        if index is None or self._is_finished():
            show.say(f"run {self.run.name} is finished, nothing to do: {self._what_exists()}")
            return 0
        session.check_reachable()
        resolved, method = self.resolve(index)
        self._refuse_other_state(method)
        self._remember(resolved)
        show.first_screen(resolved, self.run, self.start_step(), method)
        newest = commits.newest(self.run.commits)
        cut(self.run.logs / "metrics.jsonl", self.start_step(), newest is not None and newest.monitor_due)
        tracker = self._tracker(resolved)
        status = "FAILED"
        try:
            code = self._train(resolved, tracker)
            status = "KILLED" if code else "FINISHED"
            if code == 0:
                code = self._hand_over(resolved, method, tracker)
            return code
        finally:
            sent = tracker.close(status, {"plots": self.run.logs / "plots", "": self.run.recipe_file})
            self.run.remember(tracked=sent)

    def resolve(self, index: Index) -> tuple[Resolved, Method]:
        """The checked plan of this attempt and the built method."""
        self._refuse_other_holdout()
        method = build_method(self.recipe, data_facts(self.recipe, index))
        return resolve(self.recipe, index, method, self._kept()), method

    def start_step(self) -> int:
        newest = commits.newest(self.run.commits)
        return newest.step if newest else 0

    def index(self) -> Index:
        """The index of the data; UserError if the run has begun with another recipe or other data.

        Before the first commit nothing is lost: a recipe or data that were a mistake may be corrected.
        """
        changes = self._changes() if self._has_begun() else []
        if changes:
            raise UserError(
                f"run {self.run.name} was started with another recipe: {', '.join(changes)}; give the old values, "
                f"or start a new run with --name NEW, or go on from its state with --fork NEW"
            )
        index = open_index(self.recipe.data.train, home() / "index", progress=True)
        known = self._kept().get("data_digest", index.digest)
        if known != index.digest:
            raise UserError(
                f"run {self.run.name} was started on other data (digest {known[:12]}, {self.recipe.data.train} has "
                f"{index.digest[:12]}); give back the data, or start a new run with --name or --fork"
            )
        return index

    def _has_begun(self) -> bool:
        return commits.newest(self.run.commits) is not None

    def _kept(self) -> dict[str, Any]:
        """Facts of earlier attempts that bind this one."""
        return self.run.facts() if self._has_begun() else {}

    def _changes(self) -> list[str]:
        """Settings that differ from those the run was started with: `path old -> new`."""
        begun = recipe_of(self.run)
        if begun is None:
            return []
        before, after = begun.identity(), self.recipe.identity()
        paths = sorted(path for path in before.keys() | after.keys() if before.get(path) != after.get(path))
        return [f"{path} {before.get(path)} -> {after.get(path)}" for path in paths]

    def _is_finished(self) -> bool:
        """Trained, exported, tracked, and registered if that is asked for."""
        facts = self.run.facts()
        registered = self.recipe.track.register_as is None or "version" in facts
        return bool(facts.get("finished") and facts.get("tracked") and registered)

    def _is_asked_again(self) -> bool:
        """Whether the recipe says what the run was begun with, word for word: then its data need not be there any more."""
        begun = recipe_of(self.run)
        return begun is not None and not self._changes() and begun.data.train == self.recipe.data.train

    def _refuse_other_holdout(self) -> None:
        """A run that holds samples out goes on only with the same ones."""
        newest = commits.newest(self.run.commits)
        rule = newest.manifest.get("holdout_rule", "every k-th") if newest else HOLDOUT_RULE
        if self.recipe.data.holdout and rule != HOLDOUT_RULE:
            raise UserError(
                f"run {self.run.name} was begun by another version of Vergence, which chose other samples for the "
                f"holdout (rule {rule}, now {HOLDOUT_RULE}); start a new run with --name NEW, or go on from its state "
                f"with --name {self.run.name} --fork NEW"
            )

    def _refuse_other_state(self, method: Method) -> None:
        """A fork may start from a run with other parameters or another optimiser."""
        start = commits.newest(self.run.commits)
        misfit = start and commits.misfit(start, expected_state(method, self.recipe.optim))
        if start and misfit:
            raise UserError(
                f"run {self.run.name} cannot go on from {start.path}: {misfit}; a fork needs the same encoder, "
                "method and optimiser"
            )

    def _remember(self, resolved: Resolved) -> None:
        known = self.run.facts().get("data_digest", resolved.index.digest)
        if not self._has_begun() and (self._changes() or known != resolved.index.digest):
            self.run.forget()  # the MLflow run of an attempt that was a mistake, too
        self.run.logs.mkdir(parents=True, exist_ok=True)
        self.run.commits.mkdir(exist_ok=True)
        write_atomic(self.run.recipe_file, yaml.dump(resolved.recipe.dump()))
        self.run.remember(
            id=self.run.facts().get("id") or secrets.token_hex(8),
            data_digest=resolved.index.digest,
            precision=resolved.precision,
            regime=resolved.choice.regime,
            micro=resolved.choice.micro,
            span=resolved.norm.span,
        )

    def _tracker(self, resolved: Resolved) -> Tracker:
        from vergence.pipelines.recipe import flatten

        facts = resolved.facts()
        tags = {name: str(facts[name]) for name in ("recipe_digest", "data_digest", "code_version")}
        return Tracker(self.run, self.recipe.track.experiment, flatten(self.recipe.dump()), tags, show.say)

    def _train(self, resolved: Resolved, tracker: Tracker) -> int:
        """0 when the last step is committed, 130 or 143 when interrupted; raises VergenceError."""
        newest = commits.newest(self.run.commits)
        start_step = newest.step if newest else 0
        if newest is not None and start_step >= resolved.steps and not newest.monitor_due:
            return 0
        stages = {"enter": psutil.Process().create_time(), "checks": time.time()}
        with session.opened(resolved.need) as cluster:
            tracker.check()  # it has asked while Ray started
            outcome, number = self._run_ranks(resolved, cluster, stages | {"ray": time.time()}, start_step)
        if outcome.status == "failed":
            raise VergenceError(f"run {self.run.name}: {outcome.message}")
        if outcome.status == "interrupted":
            show.say(f"stopped at step {self.start_step():,}; the same command goes on from there")
            return 128 + (number or signal.SIGTERM)  # no signal: the machine is to be taken away
        return 0

    def _run_ranks(
        self, resolved: Resolved, cluster: session.Session, stages: dict[str, float], start_step: int
    ) -> tuple[Outcome, int]:
        """How the ranks ended, and the signal that stopped them, or 0."""
        from vergence.platform.cluster.driver import Interrupt, fit

        job = resolved.job(self.run, stages)
        interrupt = Interrupt(job, show.say)
        tail = Tail(self.run.logs, after=float(start_step))
        with (
            interrupt.handled(),
            show.ProgressLine(resolved.steps, start_step, job.plan.global_batch) as line,
        ):

            def watch() -> bool:
                line.update(tail.read())
                return line.started

            outcome = fit(job, resolved.stream(), cluster, self.run.name, interrupt, watch)
            watch()
        return outcome, interrupt.signal

    def _hand_over(self, resolved: Resolved, method: Method, tracker: Tracker) -> int:
        """Export, plot and register what is missing."""
        final = commits.newest_intact(self.run.commits)
        if final is None or final.step < resolved.steps:
            raise VergenceError(
                f"run {self.run.name}: its last commit is damaged; the same command trains it again"
            )
        self._tell_counts(final)
        card = self._card(resolved, method, final)
        if not (self.run.exports / "encoder.pt2").exists():
            state = commits.load_state(final)
            method.load_state_dict(
                {
                    name.removeprefix("model."): value
                    for name, value in state.items()
                    if name.startswith("model.")
                }
            )
            show.say("exporting the encoder")
            export_encoder(method.encoder, card, self.run.exports)
        plots.draw(self.run.logs)
        self._draw_views(resolved)
        name = self.recipe.track.register_as
        if name is not None and "version" not in self.run.facts():
            self.run.remember(version=self._register(name, card, tracker))
        self.run.remember(finished=True)
        show.say(f"done: {self._what_exists()}")
        return 0

    def _register(self, name: str, card: EncoderCard, tracker: Tracker) -> int:
        """The version of model `name` that holds the export, made by this run's MLflow run."""
        uri = tracking_uri()
        show.say(f"registering {name} at {uri}")
        try:
            return register(self.run.exports, name, run_id=tracker.open(), tags=_tags(card), tracking_uri=uri)
        except Exception as error:
            reason = str(error) if isinstance(error, VergenceError) else explain(error, uri)
            raise VergenceError(
                f"run {self.run.name} is trained and exported to {self.run.exports}, but not registered: {reason}; "
                f"give the same command again to register it"
            ) from None

    def _draw_views(self, resolved: Resolved) -> None:
        """A sheet of a few training images and the views that the run makes of them."""
        recipe = self.recipe
        ids = resolved.plan.training_ids(np.arange(min(8, resolved.plan.num_training)))
        images = Reader(resolved.index, max_pixels=recipe.data.max_pixels).images(ids)
        good = [i for i, image in enumerate(images) if isinstance(image, np.ndarray)]
        views = Views(recipe.views, seed=recipe.seed, mean=recipe.data.mean, std=recipe.data.std)
        path = self.run.logs / "plots" / "views.png"
        contact_sheet([np.asarray(images[i]) for i in good], ids[good], views, path)

    def _card(self, resolved: Resolved, method: Method, final: commits.Commit) -> EncoderCard:
        recipe = self.recipe
        return EncoderCard(
            name=self.run.name,
            method=recipe.method.name,
            backbone=recipe.encoder.model_dump(),
            dim=method.encoder.dim,
            size=recipe.size,
            mean=recipe.data.mean,
            std=recipe.data.std,
            images_seen=final.step * recipe.batch.global_batch,
            recipe_digest=recipe.digest(),
            data_digest=resolved.index.digest,
            code_version=resolved.facts()["code_version"],
            metrics={} if final.score is None else {"monitor": final.score},
            recipe=recipe.dump(),
        )

    def _tell_counts(self, final: commits.Commit) -> None:
        counts = final.manifest["counts"]
        if counts["bad"]:
            show.say(
                f"{counts['bad']} unreadable samples were replaced; they are named in {self.run.logs}/rank-*.log"
            )
        if counts["skipped"]:
            show.say(f"{counts['skipped']} steps were skipped: loss or gradients were not finite")

    def _what_exists(self) -> str:
        facts, name = self.run.facts(), self.recipe.track.register_as
        registered = f"; registered as {name} version {facts['version']}" if "version" in facts else ""
        encoder = f"models:/{name}@champion" if registered else self.run.name
        return f"encoder in {self.run.exports}{registered}; next: vergence evaluate {encoder} --train SHARDS --test SHARDS"


def _tags(card: EncoderCard) -> dict[str, str]:
    """Version tags of the registry."""
    return {
        "method": card.method,
        "backbone": card.backbone["name"],
        "dimension": str(card.dim),
        "recipe_digest": card.recipe_digest,
        "data_digest": card.data_digest,
        "images_seen": str(card.images_seen),
        "code_version": card.code_version,
    }
