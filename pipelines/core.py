"""Training as a function: it prints nothing, takes no signal, ends no process and leaves the environment alone."""

import time
from collections.abc import Callable, Mapping

from vergence.pipelines.resolve import Resolved
from vergence.platform.cluster.driver import fit
from vergence.platform.cluster.session import Session
from vergence.platform.errors import VergenceError
from vergence.platform.runs.outcome import Outcome
from vergence.platform.runs.records import Event
from vergence.platform.runs.run import Run
from vergence.platform.runs.stop import Stop


def train(
    resolved: Resolved,
    run: Run,
    session: Session,
    *,
    stop: Stop,
    observe: Callable[[Event], None],
    stages: Mapping[str, float] | None = None,
    pause_after: int | None = None,
) -> Outcome:
    """Train what is left of a run, on any thread: to its last step, or to a commit: after `stop` was asked, or so
    many epochs of the run.

    run: its lock is held by this process; session: an open one, which is left open; observe: gets each record of
    the run, and remarks on what it waits for, on this thread; stages: Unix times of what was done before.
    Raises VergenceError: the run failed in a way that a new start would not mend.
    """
    job = resolved.job(run, {**(stages or {}), "ray": time.time()}, pause_after)
    outcome = fit(
        job,
        resolved.stream,
        session,
        name=run.name.replace("/", "-"),
        start_step=resolved.start_step,
        stop=stop,
        observe=observe,
    )
    if outcome.status == "failed":
        raise VergenceError(f"run {run.name}: {outcome.message}")
    return outcome
