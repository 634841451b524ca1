"""What a machine offers a worker. Asks without a CUDA context: one would take memory of a GPU that ranks need."""

import os
import subprocess
from pathlib import Path
from typing import NamedTuple


class Machine(NamedTuple):
    """One worker's part of a machine that trains; of several machines the weakest in each respect."""

    cpus: int  # that the machine's processes may use
    host_bytes: int  # free memory of the host, or of the container's limit, for each worker on it
    gpu_bytes: int | None  # free memory of a GPU; None if none is used, or none can be asked
    native_bf16: bool  # whether what it trains on computes bf16 itself (emulated, it is slower than fp32)


def weakest(machines: "list[Machine]") -> Machine:
    """What every one of the machines, one or more, has."""
    gpus = [machine.gpu_bytes for machine in machines if machine.gpu_bytes is not None]
    return Machine(
        min(machine.cpus for machine in machines),
        min(machine.host_bytes for machine in machines),
        min(gpus) if len(gpus) == len(machines) else None,
        all(machine.native_bf16 for machine in machines),
    )


def measure(workers: int, gpus: bool) -> Machine:
    """This machine, for so many workers on it; gpus: whether they train on GPUs. Loads torch if they do not."""
    cpus = len(os.sched_getaffinity(0))
    host_bytes = max(0, _free_bytes()) // max(1, workers)
    if not gpus:
        return Machine(cpus, host_bytes, None, _cpu_has_bf16())
    cards = _cards()
    return Machine(
        cpus, host_bytes, min((card.free_bytes for card in cards), default=None), _have_bf16(cards)
    )


def _free_bytes() -> int:
    """The smaller of what Linux calls available and what the container's limit leaves."""
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        free = int(fields["MemAvailable"].split()[0]) * 1024
    limit, used = (Path("/sys/fs/cgroup") / name for name in ("memory.max", "memory.current"))
    if limit.exists() and used.exists() and limit.read_text().strip() != "max":
        stat = dict(line.split() for line in (used.parent / "memory.stat").read_text().splitlines())
        reclaimable = int(stat.get("inactive_file", 0))  # page cache of the shards counts as used
        free = min(free, int(limit.read_text()) - int(used.read_text()) + reclaimable)
    return free


def _cpu_has_bf16() -> bool:
    import torch

    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


class _Card(NamedTuple):
    free_bytes: int
    capability: float  # of CUDA


def _cards() -> list[_Card]:
    """The GPUs of this machine, as its driver tells them; none if it cannot be asked."""
    query = ["nvidia-smi", "--query-gpu=memory.free,compute_cap", "--format=csv,noheader,nounits"]
    try:
        told = subprocess.run(query, capture_output=True, text=True, check=True, timeout=20).stdout
        rows = [line.split(",") for line in told.splitlines()]
        return [_Card(int(free) << 20, float(capability)) for free, capability in rows]
    except (OSError, subprocess.SubprocessError, ValueError):
        return []


def num_cards() -> int:
    """GPUs that the driver has, whether or not this build of torch can use them."""
    return len(_cards())


def _have_bf16(cards: list[_Card]) -> bool:
    return bool(cards) and min(card.capability for card in cards) >= 8.0  # Ampere
