"""What a command does with a run: a pure function of what its folder holds, the recipe and the data."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from vergence.pipelines.recipe import Recipe, flatten
from vergence.pipelines.scale import plan_for
from vergence.platform.data.plan import HOLDOUT_RULE
from vergence.platform.runs.commit import Commit
from vergence.platform.runs.facts import RunFacts
from vergence.platform.runs.past import Past
from vergence.platform.schema import SCHEMA, foreign

STANDING = ("constant", "steps")  # shapes that a run of more epochs has alike


class Data(NamedTuple):
    """What is known of the training data once their index is open."""

    digest: str
    num_samples: int


class Train(NamedTuple):
    """Train what is left, or what was added."""

    commit: Commit | None  # to go on from
    kept: RunFacts  # of earlier attempts, which bind this one
    forgets: bool  # an earlier attempt was a mistake that left no commit: nothing of it counts
    prolongs: bool = False  # a run that was finished gets more epochs


class HandOver(NamedTuple):
    """All steps are done; export, register or track what is missing."""

    commit: Commit


class Done(NamedTuple):
    """Nothing is missing."""


class Refuse(NamedTuple):
    """The user's mistake, in one line."""

    reason: str


class LookAtData(NamedTuple):
    """It depends on the data: decide again with them."""


Decision = Train | HandOver | Done | Refuse | LookAtData


def decide(past: Past, recipe: Recipe, data: Data | None = None) -> Decision:
    """What the command does.

    data: None as long as nobody has looked at them, which for many shards takes time, and is in vain where the recipe
    is refused or the run is complete and asked for word for word: then they need not be there any more.
    """
    changes = _changes(past, recipe)
    reason = _refusal(past, recipe, changes, data)
    if reason is not None:
        return Refuse(reason)
    is_complete = _is_complete(past, recipe) and not changes
    same_data = data is None or past.facts.data_digest in (None, data.digest)
    if is_complete and same_data and (data is not None or _names_same_data(past, recipe)):
        return Done()
    if data is None:
        return LookAtData()
    plan = plan_for(recipe, data.num_samples)
    commit = past.commit
    if commit and not commit.monitor_due and commit.step >= recipe.epochs * plan.batches_per_epoch:
        return HandOver(commit)
    if past.has_begun:
        return Train(commit, kept=past.facts, forgets=False, prolongs=bool(changes))
    return Train(commit, kept=RunFacts(), forgets=bool(changes) or not same_data)


def _changes(past: Past, recipe: Recipe) -> list[str]:
    """Settings that differ from those the run was begun with: `path old -> new`."""
    if past.recipe is None:
        return []
    schema = past.recipe.get("schema", 1)
    if schema != SCHEMA:
        return [f"schema {schema} -> {SCHEMA}"]
    before, after = Recipe.parse(past.recipe, f"run {past.name}").identity(), recipe.identity()
    paths = sorted(path for path in before.keys() | after.keys() if before.get(path) != after.get(path))
    return [f"{path} {before.get(path)} -> {after.get(path)}" for path in paths]


def _refusal(past: Past, recipe: Recipe, changes: list[str], data: Data | None) -> str | None:
    """Why the run cannot go on like this. Before its first own commit nothing is lost: mistakes may be corrected."""
    commit = past.commit
    if commit is None:
        return None
    anew = f"start a new run with --name NEW, or go on from its state with --name {past.name} --fork NEW"
    other = foreign(commit.manifest.get("schema", 1))
    if other is not None:
        return f"run {past.name} was begun by {other}; {anew}"
    if past.has_begun and changes:
        prolonged = _only_longer(past, recipe, changes)
        if prolonged and (reason := _why_not_longer(recipe)):
            return (
                f"run {past.name} was begun for fewer epochs ({changes[0]}) and cannot be prolonged: {reason}; go on from "
                "its state with --fork NEW, or start a new run with --name NEW"
            )
        if prolonged:
            return None
        return (
            f"run {past.name} was started with another recipe: {', '.join(changes)}; give the old values, "
            f"or start a new run with --name NEW, or go on from its state with --fork NEW"
        )
    known = past.facts.data_digest
    if past.has_begun and data is not None and known not in (None, data.digest):
        return (
            f"run {past.name} was started on other data (digest {known[:12]}, {recipe.data.train} has "
            f"{data.digest[:12]}); give back the data, or start a new run with --name or --fork"
        )
    rule = commit.manifest.get("holdout_rule")
    if recipe.data.holdout and rule != HOLDOUT_RULE:
        return (
            f"run {past.name} was begun by another version of Vergence, which chose other samples for the holdout "
            f"(rule {rule}, now {HOLDOUT_RULE}); {anew}"
        )
    return None


def _only_longer(past: Past, recipe: Recipe, changes: list[str]) -> bool:
    before = (past.recipe or {}).get("epochs", recipe.epochs)
    return len(changes) == 1 and changes[0].startswith("epochs ") and before < recipe.epochs


def _why_not_longer(recipe: Recipe) -> str | None:
    """What is a function of the share of the run that is done, and would have been another one in a longer run."""
    if recipe.schedule.shape not in STANDING:
        return f"schedule.shape={recipe.schedule.shape} is spread over all epochs ({', '.join(STANDING)} are not)"
    settings = recipe.dump()
    for path, value in {
        **flatten(settings["method"], "method"),
        **flatten(settings["optim"], "optim"),
    }.items():
        if path.endswith(".shape") and value not in STANDING:
            return f"{path}={value} is spread over all epochs"
    if "momentum" in settings["method"]:
        return "method.momentum of the teacher is a function of the whole run"
    return None


def _is_complete(past: Past, recipe: Recipe) -> bool:
    """Trained, exported, tracked, and registered if that is asked for."""
    registered = recipe.track.register_as is None or past.facts.version is not None
    return past.facts.finished and past.facts.tracked and registered


def _names_same_data(past: Past, recipe: Recipe) -> bool:
    """Whether the recipe names the data by the words that the run was begun with."""
    section: Mapping[str, Any] = (past.recipe or {}).get("data", {})
    return section.get("train") == recipe.data.train
