"""The Ray session: our own on one machine, or a cluster that exists; capacity is checked before use."""

import math
import os
from typing import Any, NamedTuple

from pydantic import BaseModel, Field, NonNegativeInt, PositiveInt

from vergence.platform.errors import UserError, VergenceError

# glibc gives the activations of each step back to the kernel, and the next step takes page faults for them: a
# tenth of a ResNet-18 step at 32 px. These settings, read when a process starts, keep freed memory in one heap of
# huge pages. Other C libraries ignore them.
MALLOC = (
    "glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=18446744073709551615:glibc.malloc.arena_max=1:"
    "glibc.malloc.hugetlb=1"
)


class ScaleConfig(BaseModel, frozen=True, extra="forbid", strict=True):
    workers: PositiveInt = Field(1, description="Ray Train workers (ranks)")
    cpus_per_worker: PositiveInt = Field(1, description="CPUs, and torch threads, of each worker")
    gpus_per_worker: int = Field(0, ge=0, le=1, description="GPUs of each worker")
    zero: int = Field(0, ge=0, le=3, description="DeepSpeed ZeRO stage: 0, 1 or 2")
    max_failures: NonNegativeInt = Field(3, description="restarts of the worker group before the run fails")


class Need(NamedTuple):
    """Logical CPUs and GPUs of a run."""

    scale: ScaleConfig
    readers: int
    reader_cpus: float

    @property
    def cpus(self) -> float:
        return self.scale.workers * self.scale.cpus_per_worker + self.readers * self.reader_cpus

    @property
    def gpus(self) -> int:
        return self.scale.workers * self.scale.gpus_per_worker

    def arithmetic(self) -> str:
        workers = f"{self.scale.workers} workers x {self.scale.cpus_per_worker} CPUs"
        return f"{workers} + {self.readers} readers x {self.reader_cpus:g} CPUs = {self.cpus:g} CPUs"


def physical_cpus() -> int:
    """CPUs this process may use."""
    return len(os.sched_getaffinity(0))


def check_local(need: Need) -> None:
    """UserError if a session of our own would have to over-declare this machine too far."""
    limit = max(8, 4 * physical_cpus())
    if need.cpus > limit:
        raise UserError(
            f"scale: {need.arithmetic()}, but this machine has {physical_cpus()} and a local run may declare "
            f"at most {limit}; lower scale.workers or scale.cpus_per_worker, or set RAY_ADDRESS"
        )
    if need.gpus:
        import torch

        if need.gpus > torch.cuda.device_count():
            raise UserError(
                f"scale: {need.scale.workers} workers x {need.scale.gpus_per_worker} GPUs = {need.gpus} GPUs, "
                f"but this machine has {torch.cuda.device_count()}; set scale.gpus_per_worker=0 to train on CPUs"
            )


def check_cluster(need: Need, resources: dict[str, Any]) -> None:
    """UserError with the arithmetic if a cluster that exists is too small."""
    cpus, gpus = resources.get("CPU", 0), resources.get("GPU", 0)
    if need.cpus > cpus:
        raise UserError(
            f"scale: {need.arithmetic()}, but the Ray cluster has {cpus:g}; "
            f"lower scale.workers or scale.cpus_per_worker, or add nodes"
        )
    if need.gpus > gpus:
        raise UserError(f"scale: {need.gpus} GPUs needed, but the Ray cluster has {gpus:g}")


def is_local() -> bool:
    """Whether the run brings its own Ray session."""
    return not os.environ.get("RAY_ADDRESS")


def connect(need: Need) -> None:
    """Start a session of our own, or join the one RAY_ADDRESS names; raises UserError."""
    # Ray lowers the priority of its workers to nice 15 by default: on a busy host they starve
    os.environ.setdefault("RAY_worker_niceness", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if is_local():
        # the session is reachable from this machine only and lives as long as the command
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")
        os.environ.setdefault("GLIBC_TUNABLES", MALLOC)
    import ray

    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "error", "configure_logging": True}
    if is_local():
        _start_local(need, quiet)
        return
    address = os.environ["RAY_ADDRESS"]
    try:
        ray.init(address=address, **quiet)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise UserError(
            f"RAY_ADDRESS={address}: no Ray cluster answers there (is it running? check RAY_AUTH_TOKEN): "
            f"{_first_line(error)}"
        ) from None
    check_cluster(need, ray.cluster_resources())


def _start_local(need: Need, quiet: dict[str, Any]) -> None:
    """A session of our own; on a busy machine Ray's processes may miss its 30 s, so it gets a second try."""
    import ray

    for last_try in (False, True):
        try:
            ray.init(
                num_cpus=math.ceil(need.cpus),
                include_dashboard=False,
                object_store_memory=_object_store_bytes(need),
                **quiet,
            )
            return
        except Exception as error:  # Ray raises the bare Exception here
            ray.shutdown()
            if last_try:
                raise VergenceError(f"Ray did not start on this machine: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _object_store_bytes(need: Need) -> int:
    import psutil

    wanted = (256 << 20) * (need.scale.workers + 1)
    return max(100 << 20, min(wanted, int(psutil.virtual_memory().available * 0.3)))


def disconnect() -> None:
    """Leave the cluster, or end the session of our own."""
    import ray

    ray.shutdown()
