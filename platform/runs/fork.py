"""A run that starts from another one's newest state."""

import secrets
import shutil

from vergence.platform.data.plan import HOLDOUT_RULE
from vergence.platform.errors import UserError
from vergence.platform.runs import commit as commits
from vergence.platform.runs.facts import RunFacts
from vergence.platform.runs.run import Run, is_live, locked, run_names
from vergence.platform.schema import SCHEMA


def fork(old: Run, new: Run) -> bool:
    """Give `new`, unless it has begun, the newest state of `old` as its commit at step 0; whether it did.

    Raises UserError: `old` has no commit.
    """
    source = commits.newest_intact(old.commits)
    if source is None:
        raise UserError(f"--fork: run {old.name} has no commit to start from; runs: {', '.join(run_names())}")
    if commits.newest(new.commits) is not None:
        return False
    with locked(new):
        facts = {
            **source.manifest,
            "schema": SCHEMA,
            "run": RunFacts(id=secrets.token_hex(8)).dump(),  # its MLflow run and version are its own
            "step": 0,
            "score": None,
            "monitor_due": False,
            "holdout_rule": HOLDOUT_RULE,
            "counts": dict.fromkeys(source.manifest["counts"], 0),
            "forked_from": {"run": old.name, "step": source.step},
        }
        commits.write(new.commits, commits.load_state(source), facts, new.attempt, owned=lambda: True)
    return True


def unfork(new: Run) -> None:
    """Take back a fork that has trained nothing."""
    newest = commits.newest(new.commits)
    if newest is not None and newest.step == 0 and not is_live(new.path):
        shutil.rmtree(new.path)
