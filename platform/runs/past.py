"""What a run folder holds when an attempt begins, read once."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from vergence.platform import yaml
from vergence.platform.errors import UserError
from vergence.platform.runs import commit as commits
from vergence.platform.runs.commit import Commit
from vergence.platform.runs.facts import RunFacts, read_facts
from vergence.platform.runs.outcome import Outcome, last_outcome
from vergence.platform.runs.run import Run


class Past(NamedTuple):
    """Of commits sizes are compared, no byte is read: whoever loads one hashes it."""

    name: str
    commit: Commit | None  # the newest whole one
    facts: RunFacts
    recipe: Mapping[str, Any] | None  # the resolved recipe it was begun with; None if none is whole
    outcome: Outcome | None  # of the last attempt that has left one

    @property
    def has_begun(self) -> bool:
        """Whether there is a commit of its own: what it was trained with binds. A fork starts from another run's."""
        return self.commit is not None and "forked_from" not in self.commit.manifest

    @property
    def start_step(self) -> int:
        return self.commit.step if self.commit else 0

    @classmethod
    def read(cls, run: Run) -> "Past":
        newest = commits.newest(run.commits)
        return cls(
            run.name,
            newest,
            read_facts(run.path, newest),
            _recipe(run, newest),
            last_outcome(run.path),
        )


def _recipe(run: Run, newest: Commit | None) -> Mapping[str, Any] | None:
    """That of the newest commit, if it is the run's own, else the one that the folder keeps."""
    if newest is not None and "recipe" in newest.manifest and "forked_from" not in newest.manifest:
        recipe: Mapping[str, Any] = newest.manifest["recipe"]
        return recipe
    return kept_recipe(run)


def kept_recipe(run: Run) -> Mapping[str, Any] | None:
    """The resolved recipe in the run's folder, every setting in it; None if it is not whole."""
    try:
        recipe = yaml.read(run.recipe_file)
    except UserError:
        return None
    is_whole = isinstance(recipe, dict) and isinstance(recipe.get("track"), dict)  # the last section
    return recipe if is_whole else None
