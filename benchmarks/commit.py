"""What a commit costs: 100 M parameters with AdamW on two ranks, ZeRO stages 0 and 2, a disk that is waited for."""

import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from benchmarks import data
from benchmarks.measure import spread

TESTS = Path(__file__).resolve().parent.parent / "tests"
WIDTH, DEPTH = 4096, 6  # 100.7 M parameters
STATE_MB = DEPTH * WIDTH**2 * 12 / 1e6  # weights and AdamW's two slots, fp32


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(*(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(DEPTH)))

    def forward(self, x: Tensor) -> Tensor:
        return self.encoder(x).square().mean()


def run(rounds: int, says: Callable[[str], None]) -> dict[str, Any]:
    """Seconds on rank 0 until the commit is on the disk, and megabytes above what each rank held before."""
    sys.path.insert(0, str(TESTS))
    import deepspeed  # noqa: F401  # the forked ranks inherit it
    from ranks import run_ranks

    data.CACHE.mkdir(parents=True, exist_ok=True)
    seconds, peaks = {}, {}
    for zero in (0, 2):
        with tempfile.TemporaryDirectory(dir=data.CACHE) as folder:
            first, other = run_ranks(_commits, 2, Path(folder), zero, rounds)
        seconds[f"stage {zero}"] = spread([elapsed for elapsed, _ in first])
        for rank, rows in enumerate((first, other)):
            peaks[f"stage {zero}, rank {rank}"] = spread([peak / 1e6 for _, peak in rows])
        says(f"stage {zero}: rank 0 {first}, rank 1 {other}")
    shares = {name: (row["max"] / STATE_MB, 1.1 if "rank 0" in name else 0.2) for name, row in peaks.items()}
    return {
        "seconds": seconds,
        "megabytes": peaks,
        "at_most": {f"peak of {name}, in sizes of the state": share for name, share in shares.items()},
    }


def _commits(rank: int, world_size: int, folder: Path, zero: int, rounds: int) -> list[tuple[float, int]]:
    """(seconds, peak bytes) of each commit after the first one."""
    from peak import peak_bytes

    from vergence.platform.files import write_atomic
    from vergence.platform.runs.commit import CommitConfig
    from vergence.platform.train.engine import Engine
    from vergence.platform.train.optim.config import OptimConfig
    from vergence.platform.train.record import committed
    from vergence.platform.train.schedule import ScheduleConfig

    torch.set_num_threads(1)
    optim = OptimConfig(name="adamw", lr=0.001, rule="none")
    settings: Any = {"global_batch": 4, "zero": zero, "precision": "fp32", "device": torch.device("cpu")}
    net: Any = Net()
    engine = Engine(net, optim, ScheduleConfig(shape="constant"), epochs=1, **settings)
    engine.backward(engine.module(torch.randn(4, WIDTH)), True)
    engine.step()  # memory that has never been written to would not count
    job: Any = SimpleNamespace(run=folder, attempt="bench", commit=CommitConfig(keep=1))
    holder = {"host": "", "pid": 0, "started": 0, "attempt": job.attempt}
    write_atomic(folder / "lock.json", json.dumps(holder))
    results = []
    for step in range(rounds + 1):
        dist.barrier()
        begin = time.perf_counter()
        with peak_bytes() as peak:
            failure = committed(job, engine, {"step": step, "counts": {}})
        assert failure is None, failure
        results.append((time.perf_counter() - begin, peak.above))
    return results[1:]
