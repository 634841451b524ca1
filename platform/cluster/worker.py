"""The function each Ray Train worker runs: shares from Ray Data into the rank loop."""

import errno
import itertools
import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vergence.platform.errors import VergenceError
from vergence.platform.masking import masked
from vergence.platform.runs.outcome import Outcome, leave_outcome, read_outcome

if TYPE_CHECKING:
    from vergence.platform.data.stream import Stream
    from vergence.platform.runs.commit import Commit
    from vergence.platform.train.job import Job

log = logging.getLogger(__name__)

PREEMPTION_S = 5.0  # between two questions whether the machine is to be taken away


def work(config: dict[str, Any]) -> None:
    """Train on this rank from the newest commit; the outcome is left for the driver.

    config: {"job": pickled (Job, Stream)}. What a restart would not mend is an outcome, whichever rank finds it;
    anything else that is raised makes Ray start the ranks anew.
    """
    import ray.train
    from ray import cloudpickle

    entered_s = time.time()
    job: Job
    job, stream = cloudpickle.loads(config["job"])
    if read_outcome(job.outcome_file) is not None:
        return  # Ray starts the ranks anew after one of them has found what cannot be mended
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    log_to_file(job.run / "logs" / f"rank-{rank}.log")
    log.info("attempt %s, rank %d of %d", job.attempt, rank, world_size)
    try:
        outcome = _train(job, stream, rank, world_size, entered_s)
    except Exception as error:
        reason = beyond_mending(error, job.run)
        if reason is not None:
            log.exception("rank %d gives up", rank)
            leave_outcome(job.outcome_file, Outcome("failed", reason))
        raise
    if rank == 0:
        leave_outcome(job.outcome_file, outcome)


def beyond_mending(error: BaseException, run: Path) -> str | None:
    """Why starting the ranks anew would not help, or None if it might.

    A VergenceError says what is wrong with data or recipe, also when a reader task raised it; and a full disk
    stays full.
    """
    cause = getattr(error, "cause", error)  # Ray's RayTaskError carries what the task raised
    if isinstance(cause, VergenceError):
        return str(cause).partition("\n")[0]  # Ray appends advice of its own
    if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{cause.strerror} ({cause.filename or run}); the last commit is intact"
    return None


def _train(job: "Job", stream: "Stream", rank: int, world_size: int, entered_s: float) -> Outcome:
    from vergence.platform.cluster.feed import Feed

    commit = _agreed_commit(job, rank)
    shares = iter(Feed(stream, job.data, rank, world_size, commit.step if commit else 0))
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(next, shares)  # reading goes on while the model is built
        from vergence.platform.train.loop import RankLoop

        loop = RankLoop(job, commit, stop_signal(job, rank), entered_s)
        return loop.run(itertools.chain(_one(first), shares))


def _agreed_commit(job: "Job", rank: int) -> "Commit | None":
    """The newest commit, found and checked by rank 0 for all. Collective."""
    import torch.distributed as dist

    from vergence.platform.runs import commit as commits

    found = [commits.newest_intact(job.run / "commits") if rank == 0 else None]
    dist.broadcast_object_list(found, src=0)
    return found[0]


def stop_signal(job: "Job", rank: int) -> Callable[[], bool]:
    """Says whether this rank wants to stop: the driver was told to, or the machine is to be taken away."""
    import ray.train

    preempted = threading.Event()

    def ask() -> None:
        while not preempted.wait(PREEMPTION_S):
            if ray.train.get_preemption_info() is not None:  # waits for all ranks, hence a thread of its own
                preempted.set()

    threading.Thread(target=ask, name="preemption", daemon=True).start()
    return lambda: preempted.is_set() or (rank == 0 and job.stop_file.exists())


def _one(future: "Future[Any]") -> Iterator[Any]:
    yield future.result()


class _Masking(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return masked(super().format(record))


def log_to_file(path: Path) -> None:
    """All log records of this process into one file, appended; passwords and tokens are masked."""
    handler = logging.FileHandler(path, encoding="utf-8", errors="backslashreplace")
    handler.setFormatter(_Masking("%(asctime)s %(levelname)s %(name)s %(message)s"))
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(logging.INFO)
