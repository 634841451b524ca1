"""Run a function as several gloo ranks: real processes, file rendezvous."""

import datetime
import functools
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch.distributed as dist
import torch.multiprocessing as mp


def _entry(rank: int, world_size: int, store: str, fn: Callable[..., Any], args: tuple, queue: Any) -> None:
    try:
        dist.init_process_group(
            "gloo",
            init_method=f"file://{store}",
            rank=rank,
            world_size=world_size,
            timeout=datetime.timedelta(seconds=60),
        )
        queue.put((rank, fn(rank, world_size, *args), None))
        dist.barrier()
        dist.destroy_process_group()
    except BaseException:  # pytest's own failures too
        queue.put((rank, None, traceback.format_exc()))


def import_deepspeed() -> None:
    """For forked ranks to inherit: DeepSpeed, and torch's compiler, which ZeRO imports at its start (2.4 CPU-s)."""
    import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: F401


def run_ranks(fn: Callable[..., Any], world_size: int, *args: Any) -> list[Any]:
    """[fn(rank, world_size, *args) for each rank], each in a forked process; raises if any rank failed.

    Results travel through a queue: return plain or numpy values, or tensors that are cheap to pickle.
    """
    context = mp.get_context("fork")
    queue = context.SimpleQueue()
    with tempfile.TemporaryDirectory() as folder:
        store = str(Path(folder) / "store")
        processes = [
            context.Process(target=_entry, args=(rank, world_size, store, fn, args, queue))
            for rank in range(world_size)
        ]
        for process in processes:
            process.start()
        results = [queue.get() for _ in processes]
        for process in processes:
            process.join(60)
    errors = [f"rank {rank}:\n{error}" for rank, _, error in results if error]
    if errors:
        raise RuntimeError("\n".join(errors))
    return [value for _, value, _ in sorted(results, key=lambda result: result[0])]


def alone(test: Callable[..., None]) -> Callable[..., None]:
    """Decorates a test that trains in its own process: the process group and DeepSpeed's globals end with it."""

    @functools.wraps(test)
    def in_a_process_of_its_own(*args: Any, **kwargs: Any) -> None:
        run_ranks(lambda rank, world_size: test(*args, **kwargs), 1)

    return in_a_process_of_its_own
