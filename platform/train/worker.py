"""The function each Ray Train worker runs: batches from Ray Data into the rank loop."""

import itertools
import json
import logging
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vergence.platform.train.job import Job, Outcome


def work(config: dict[str, Any]) -> None:
    """Train on this rank from the commit that the stream was made for; rank 0 leaves the outcome.

    config: {"job": pickled Job}. What must not be retried is an outcome, anything raised makes Ray start anew.
    """
    import ray.train
    from ray import cloudpickle

    entered_s = time.time()
    job: Job = cloudpickle.loads(config["job"])
    rank, world_size = ray.train.get_context().get_world_rank(), ray.train.get_context().get_world_size()
    log_to_file(job.run / "logs" / f"rank-{rank}.log")
    logging.getLogger(__name__).info("attempt %s, rank %d of %d", job.attempt, rank, world_size)
    shard: Any = ray.train.get_dataset_shard("train")
    batches = iter(
        shard.iter_batches(
            batch_size=job.plan.global_batch // world_size, batch_format="numpy", prefetch_batches=2
        )
    )
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(next, batches)  # reading starts while torch is imported and the model built
        outcome = _train(job, shard, itertools.chain(_one(first), batches), entered_s)
    if rank == 0:
        write_outcome(job, outcome)


def _train(job: "Job", shard: Any, rows: Any, entered_s: float) -> "Outcome":
    from vergence.platform.runs import commit as commits
    from vergence.platform.train.loop import RankLoop

    commit = commits.read(shard.commit) if shard.commit else None
    assert shard.commit is None or commit is not None, f"commit {shard.commit} vanished"
    return RankLoop(job, shard.start_step, commit, entered_s).run(rows)


def _one(future: Any) -> Any:
    yield future.result()


def write_outcome(job: "Job", outcome: "Outcome") -> None:
    """Leave the outcome of this attempt for the driver."""
    from vergence.platform.files import write_atomic

    write_atomic(job.outcome_file, json.dumps(outcome._asdict()))


def log_to_file(path: Path) -> None:
    """All log records of this process into one file, appended."""
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(logging.INFO)
