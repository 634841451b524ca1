"""A run of a recipe in this process alone, without Ray and MLflow, to its exported encoder.

VERGENCE_HOME=HOME python -m benchmarks.alone NAME RECIPE SETTING=VALUE ...

The weights are those of `vergence pretrain` on one worker; where the machine is busy with other things, one process
of low priority is served, and a Ray session is not. It goes on from the run's newest commit.
"""

import sys
from collections.abc import Iterator
from typing import Any

from vergence.pipelines.handover import hand_over
from vergence.pipelines.recipe import Recipe, build_method, load_recipe
from vergence.pipelines.resolve import Resolved, data_facts, resolve
from vergence.platform.data.index import open_index
from vergence.platform.data.share import Share
from vergence.platform.home import home
from vergence.platform.runs import commit as commits
from vergence.platform.runs.run import Run, locked
from vergence.platform.train.loop import RankLoop


def shares(resolved: Resolved, start_step: int) -> Iterator[Share]:
    stream = resolved.stream
    for step in range(start_step, resolved.steps):
        yield stream.share(step, 0, 1)


def train(name: str, recipe: Recipe) -> int:
    """Train, or train on, and export the run of this name; the exit code."""
    run = Run(name)
    index = open_index(recipe.data.train, home() / "index")
    resolved = resolve(recipe, index, build_method(recipe, data_facts(recipe, index)))
    with locked(run):
        run.logs.mkdir(parents=True, exist_ok=True)
        commit = commits.newest(run.commits)
        start_step = commit.step if commit else 0
        if start_step < resolved.steps:
            outcome = RankLoop(resolved.job(run, {}), commit).run(shares(resolved, start_step))
            if outcome.status != "finished":
                print(outcome)
                return 1
        method = build_method(recipe, data_facts(recipe, index))
        tracker: Any = None  # nothing is registered
        hand_over(recipe, run, index, method, tracker, print)
    return 0


def main() -> int:
    name, recipe_name, *settings = sys.argv[1:]
    return train(name, load_recipe(recipe_name, settings))


if __name__ == "__main__":
    sys.exit(main())
