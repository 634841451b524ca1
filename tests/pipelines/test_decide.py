"""What a command does with a run, as a table: no folder, no Ray, no process."""

from pathlib import Path
from typing import Any

import pytest

from vergence.pipelines.decide import Data, Done, HandOver, LookAtData, Refuse, Train, decide
from vergence.pipelines.recipe import Recipe, load_recipe
from vergence.platform.data.plan import HOLDOUT_RULE
from vergence.platform.runs.commit import Commit
from vergence.platform.runs.facts import RunFacts
from vergence.platform.runs.past import Past
from vergence.platform.schema import SCHEMA

SETTINGS = ["data.train=a/*.tar", "data.holdout=0.1", "batch.global=64", "epochs=3", "track.register=tiny"]
DATA, OTHER_DATA = Data("d" * 24, 640), Data("e" * 24, 640)  # 9 steps an epoch, 27 in all


def recipe(*changes: str) -> Recipe:
    return load_recipe("simclr-cifar10", [*SETTINGS, *changes])


RECIPE = recipe()


def commit(step: int, **manifest: object) -> Commit:
    facts = {"schema": SCHEMA, "step": step, "holdout_rule": HOLDOUT_RULE, "recipe": RECIPE.dump()}
    return Commit(Path(f"step-{step}"), facts | manifest)


def past(
    step: int | None = None,
    *,
    recipe: Recipe | None = RECIPE,
    facts: dict[str, Any] | None = None,
    **manifest: object,
) -> Past:
    """A run that stands at a step; None: before the first commit, begun with `recipe`, or not begun at all."""
    known = RunFacts(id="a1", data_digest=DATA.digest, precision="bf16", micro=16).but(**(facts or {}))
    newest = None if step is None else commit(step, **manifest)
    return Past("tiny", newest, known, None if recipe is None else recipe.dump(), None)


NEW = Past("tiny", None, RunFacts(), None, None)
FINISHED = {"finished": True, "tracked": True, "version": 1}
CASES = {
    # name: (past, recipe, data, decision: Refuse with words of the reason)
    "new": (NEW, RECIPE, DATA, Train(None, RunFacts(), forgets=False)),
    "resume": (past(9), RECIPE, DATA, Train(commit(9), past().facts, forgets=False)),
    "resume with other machines": (
        past(9), recipe("scale.workers=8", "batch.micro=32", "commit.keep=9", "data.train=b/*.tar"), DATA,
        Train(commit(9), past().facts, forgets=False),
    ),
    "other recipe": (
        past(9), recipe("optim.lr=0.3", "method.temperature=0.5"), DATA,
        Refuse(f"method.temperature {RECIPE.method.temperature} -> 0.5, optim.lr {RECIPE.optim.lr} -> 0.3"),
    ),
    "other data": (past(9), RECIPE, OTHER_DATA, Refuse("was started on other data (digest dddddddddddd, a/*.tar")),
    "longer, by a schedule that does not end": (
        past(27, recipe=recipe("schedule.shape=constant"), facts=FINISHED),
        recipe("schedule.shape=constant", "epochs=5"), DATA,
        Train(commit(27), past(facts=FINISHED).facts, forgets=False, prolongs=True),
    ),
    "longer, by steps at epochs of their own": (
        past(27, recipe=recipe("schedule={shape: steps, steps: [[2, 0.1]]}"), facts=FINISHED),
        recipe("schedule={shape: steps, steps: [[2, 0.1]]}", "epochs=5"), DATA,
        Train(commit(27), past(facts=FINISHED).facts, forgets=False, prolongs=True),
    ),
    "longer, by one that does": (
        past(27, facts=FINISHED), recipe("epochs=5"), DATA,
        Refuse("was begun for fewer epochs (epochs 3 -> 5) and cannot be prolonged: schedule.shape=cosine is"),
    ),
    "longer, with another schedule in the method": (
        past(27, recipe=recipe("schedule.shape=constant", "method.temperature={peak: 0.5, end: 0.1}"), facts=FINISHED),
        recipe("schedule.shape=constant", "method.temperature={peak: 0.5, end: 0.1}", "epochs=5"), DATA,
        Refuse("method.temperature.shape=cosine is spread over all epochs"),
    ),
    "shorter": (
        past(27, recipe=recipe("schedule.shape=constant"), facts=FINISHED),
        recipe("schedule.shape=constant", "epochs=2"), DATA, Refuse("another recipe: epochs 3 -> 2"),
    ),
    "all steps are done": (past(27), RECIPE, DATA, HandOver(commit(27))),
    "the last epoch is not evaluated": (
        past(27, monitor_due=True), RECIPE, DATA,
        Train(commit(27, monitor_due=True), past().facts, forgets=False),
    ),
    "finished, not registered": (
        past(27, facts={"finished": True, "tracked": True}), RECIPE, DATA, HandOver(commit(27))
    ),
    "finished, not tracked": (
        past(27, facts={"finished": True, "version": 1}), RECIPE, DATA, HandOver(commit(27))
    ),
    "finished": (past(27, facts=FINISHED), RECIPE, DATA, Done()),
    "finished, no registration asked": (
        past(27, facts={"finished": True, "tracked": True}), recipe("track.register=null"), DATA, Done()
    ),
    "finished, its data may be gone": (past(27, facts=FINISHED), RECIPE, None, Done()),
    "finished, the same data by another name": (past(27, facts=FINISHED), recipe("data.train=b/*.tar"), DATA, Done()),
    "finished, perhaps other data": (
        past(27, facts=FINISHED), recipe("data.train=b/*.tar"), None, LookAtData()
    ),
    "finished, other recipe": (past(27, facts=FINISHED), recipe("optim.lr=0.3"), None, Refuse("optim.lr 0.1")),
    "forked, not begun": (
        past(0, recipe=None, facts={"data_digest": None}, forked_from={"run": "old"}),
        recipe("optim.lr=0.3"), OTHER_DATA,
        Train(commit(0, forked_from={"run": "old"}), RunFacts(), forgets=False),
    ),
    "forked, a mistake corrected": (
        past(0, forked_from={"run": "old"}), recipe("optim.lr=0.3"), DATA,
        Train(commit(0, forked_from={"run": "old"}), RunFacts(), forgets=True),
    ),
    "before the first commit, the same": (past(), RECIPE, DATA, Train(None, RunFacts(), forgets=False)),
    "before the first commit, other recipe": (
        past(), recipe("optim.lr=0.3"), DATA, Train(None, RunFacts(), forgets=True)
    ),
    "before the first commit, other data": (past(), RECIPE, OTHER_DATA, Train(None, RunFacts(), forgets=True)),
    "other holdout rule": (
        past(9, holdout_rule="every k-th"), RECIPE, DATA,
        Refuse(f"other samples for the holdout (rule every k-th, now {HOLDOUT_RULE})"),
    ),
    "other holdout rule, nothing held out": (
        past(9, holdout_rule="every k-th", recipe=recipe("data.holdout=0")), recipe("data.holdout=0"),
        Data(DATA.digest, 1000), Train(commit(9, holdout_rule="every k-th"), past().facts, forgets=False),
    ),
    "an older schema": (
        past(9, schema=1), RECIPE, None,
        Refuse(f"begun by an older version of Vergence (schema 1, this one has {SCHEMA})"),
    ),
    "a newer schema": (past(9, schema=SCHEMA + 1), RECIPE, None, Refuse("begun by a newer version of Vergence")),
    "an older schema, finished": (past(27, schema=1, facts=FINISHED), RECIPE, None, Refuse("an older version")),
    "nobody has looked at the data": (past(9), RECIPE, None, LookAtData()),
    "new, nobody has looked at the data": (NEW, RECIPE, None, LookAtData()),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_the_decision_follows_from_past_recipe_and_data(name: str) -> None:
    before, asked, data, expected = CASES[name]
    decision = decide(before, asked, data)
    if isinstance(expected, Refuse):
        assert isinstance(decision, Refuse)
        assert expected.reason in decision.reason
        assert "run tiny was" in decision.reason
        assert "--fork" in decision.reason
        assert "\n" not in decision.reason
    else:
        assert (type(decision), decision) == (type(expected), expected)


def test_a_recipe_of_an_older_schema_that_left_no_commit_is_forgotten() -> None:
    begun = past()
    old = {name: value for name, value in begun.recipe.items() if name != "schema"}
    assert decide(begun._replace(recipe=old), RECIPE, DATA) == Train(None, RunFacts(), forgets=True)
