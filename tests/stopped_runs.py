"""A run in the rank loop of this process, and the same run stopped at a step and gone on with."""

from contextlib import nullcontext

import numpy as np
import torch.distributed as dist

from vergence.pipelines.resolve import Resolved
from vergence.platform.runs import commit as commits
from vergence.platform.runs.run import Run, locked
from vergence.platform.train.loop import RankLoop

State = dict[str, np.ndarray]


def go_on(resolved: Resolved, run: Run, rank: int, world_size: int, stop_at: int | None = None) -> None:
    """Train from the newest commit on, to the end or for so many steps of the run."""
    loop = RankLoop(resolved.job(run, {}), commits.newest(run.commits), lambda: loop.step + 1 == stop_at)
    shares = (resolved.stream.share(step, rank, world_size) for step in range(loop.step, resolved.steps))
    with locked(run) if rank == 0 else nullcontext():
        loop.run(shares)


def undisturbed_and_stopped(
    resolved: Resolved, name: str, rank: int, world_size: int, stop_at: int
) -> list[State]:
    """Their last states; stop_at: a step within an epoch."""
    states = []
    for step in (None, stop_at):
        run = Run(f"{name}-{step}", attempt="test")
        run.logs.mkdir(parents=True, exist_ok=True)
        if step is not None:
            go_on(resolved, run, rank, world_size, step)
            stopped = commits.newest(run.commits)
            assert stopped is not None
            assert stopped.step == step
            assert step % resolved.plan.batches_per_epoch
        dist.barrier()
        go_on(resolved, run, rank, world_size)
        dist.barrier()
        final = commits.newest(run.commits)
        assert final is not None
        assert final.step == resolved.steps
        states.append({key: value.numpy() for key, value in commits.load_state(final).items()})
    return states


def assert_bit_equal(states: list[State]) -> None:
    undisturbed, stopped = states
    assert stopped.keys() == undisturbed.keys()
    for key, value in undisturbed.items():
        assert (stopped[key] == value).all(), key
