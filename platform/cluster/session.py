"""The Ray session of a run: one of our own, a cluster that exists, or the one that the caller has opened."""

import contextlib
import itertools
import math
import os
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

import psutil

from vergence.platform.cluster.address import check_address
from vergence.platform.cluster.capacity import LOWER, Need, Node, fits
from vergence.platform.errors import UserError, VergenceError

# glibc gives the activations of each step back to the kernel, and the next step takes page faults for them: a
# tenth of a ResNet-18 step at 32 px. These settings, read when a process starts, keep freed memory in one heap of
# huge pages. Other C libraries ignore them.
MALLOC = (
    "glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=18446744073709551615:glibc.malloc.arena_max=1:"
    "glibc.malloc.hugetlb=1"
)
ENVIRONMENT = {
    # Ray lowers the priority of its workers to nice 15 by default: on a busy host they starve
    "RAY_worker_niceness": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_AIR_NEW_OUTPUT": "0",  # the other one of Ray Tune prints whatever `verbose` says
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # files beside those that a search writes
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
# a session of our own is reachable from this machine only and lives as long as the command
OWN_ENVIRONMENT = {"RAY_AUTH_MODE": "disabled", "GLIBC_TUNABLES": MALLOC}
# a lost node may be back in hours; Ray Train would give up on its workers' places after three minutes
CLUSTER_ENVIRONMENT = {"RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": str(7 * 24 * 3600)}
QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": "error", "configure_logging": True}

SOCKET_BYTES = 107  # the longest path of a socket on Linux
BELOW_FOLDER = len(
    "/session_2026-11-25_21-34-03_374123_4194304/sockets/plasma_store"
)  # what Ray makes in its folder

Place = Literal["own", "cluster", "caller"]


def place() -> Place:
    """Where the run's Ray is: in the caller's session if this process has one, else as RAY_ADDRESS says."""
    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized():
        return "caller"
    return "own" if os.environ.get("RAY_ADDRESS", "") in ("", "local") else "cluster"


def has_other_machines() -> bool:
    """Whether the run's Ray, which need not be open yet, may use other machines than this one.

    UserError within seconds if RAY_ADDRESS names no Ray cluster that takes us.
    """
    where = place()
    return where == "caller" or (where == "cluster" and check_address(os.environ["RAY_ADDRESS"]))


@dataclass(frozen=True)
class Session:
    """Ray, while a run needs it."""

    need: Need
    place: Place

    def missing(self) -> str | None:
        """What others hold now and the run needs to start; None if nothing."""
        lacks = None if self.place == "own" else fits(self.need, nodes(free=True))
        return lacks and f"waiting for Ray, where others hold what this run needs: {lacks} free"

    def pending(self) -> str | None:
        """What workers of this process wait for that Ray is to start; None if it has room for them."""
        import ray
        from ray.util.placement_group import placement_group_table

        job = ray.get_runtime_context().get_job_id()  # which is the end of its groups' ids
        worker = {"CPU": float(self.need.scale.cpus_per_worker)}
        waiting = [
            group
            for group in placement_group_table().values()
            if group["state"] in ("PENDING", "RESCHEDULING")
            and worker.items() <= group["bundles"][0].items()
            and group["placement_group_id"].endswith(job)
        ]
        if not waiting:
            return None
        free = sum(node.cpus for node in nodes(free=True))
        return f"Ray has no room for {self.need.scale.workers} workers of {worker['CPU']:g} CPUs: {free:g} CPUs are free"


@contextlib.contextmanager
def opened(
    need: Need,
    *,
    lower: str = LOWER,
    metrics_port: int | None = None,
    environment: Mapping[str, str] = MappingProxyType({}),
) -> Iterator[Session]:
    """A Ray session that can hold `need`; afterwards this process is as it was found.

    A session that the caller has opened is joined and stays open; a session of our own, and our connection to a
    cluster, end here. lower: the settings that would help where a cluster is too small; metrics_port: where
    Prometheus finds the metrics of a session of our own, Ray chooses one; environment: of its processes, and of this
    one while it is open, where the user has not set them.
    Raises UserError: no cluster answers, or it is too small; VergenceError: Ray does not start.
    """
    where = place()
    with _environment(where, environment), _begun(need, where, metrics_port):
        if where != "own" and (lacks := fits(need, nodes())):
            raise UserError(f"scale: {lacks} in the Ray cluster; lower {lower}, or add nodes")
        yield Session(need, where)


@contextlib.contextmanager
def _environment(where: Place, more: Mapping[str, str]) -> Iterator[None]:
    """Settings that Ray reads from the environment, where the user has not set them."""
    of_place = {"own": OWN_ENVIRONMENT, "cluster": CLUSTER_ENVIRONMENT, "caller": {}}[where]
    wanted = {**ENVIRONMENT, **of_place, **more}
    before = {
        name: os.environ.get(name) for name in (*wanted, "PYTHONBREAKPOINT")
    }  # the last is set by ray.init
    os.environ.update({name: value for name, value in wanted.items() if before[name] is None})
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


@contextlib.contextmanager
def _begun(need: Need, where: Place, metrics_port: int | None) -> Iterator[None]:
    """ray.init and ray.shutdown, if they are ours to call."""
    if where == "caller":
        yield
        return
    import ray

    sigterm = signal.getsignal(signal.SIGTERM)
    # what Ray tells, it prints; stdout is for what was asked for, which programs read
    with _session_folder() as folder, contextlib.redirect_stdout(sys.stderr):
        try:
            if where == "own":
                _start(need, folder, metrics_port)
            else:
                _join(os.environ["RAY_ADDRESS"])
            if threading.current_thread() is threading.main_thread():
                signal.signal(
                    signal.SIGTERM, sigterm
                )  # ray.init took it, to end the process with exit code 15
            yield
        finally:
            ray.shutdown()


def _start(need: Need, folder: str | None, metrics_port: int | None) -> None:
    """A session of our own; on a busy machine Ray's processes may miss its 30 s, so it gets a second try."""
    import ray

    for last_try in (False, True):
        try:
            ray.init(
                address="local",  # else Ray joins whatever was started on this machine, or tries to
                num_cpus=math.ceil(need.cpus),
                # a trial whose process dies leaves its workers to a helper of Ray Train that asks the dashboard
                include_dashboard=bool(need.trials),
                object_store_memory=_object_store_bytes(need),
                job_config=_job_config(),
                _temp_dir=folder,
                _metrics_export_port=metrics_port,
                **QUIET,
            )
            return
        except Exception as error:  # Ray raises the bare Exception here
            ray.shutdown()
            if last_try:
                raise VergenceError(f"Ray did not start on this machine: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _object_store_bytes(need: Need) -> int:
    wanted = (256 << 20) * (need.num_workers + 1)
    return max(100 << 20, min(wanted, int(psutil.virtual_memory().available * 0.3)))


def _join(address: str) -> None:
    """Connect to the cluster at `address`; ray.init alone would try for minutes."""
    check_address(address)
    import ray

    path = (
        {} if "://" in address else {"job_config": _job_config()}
    )  # with Ray's client the driver is elsewhere
    try:
        ray.init(address, **QUIET, **path)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise UserError(f"RAY_ADDRESS={address}: {error}") from None


def _job_config() -> Any:
    """The workers search what this process searches: its folders before the standard library go first.

    Ray puts the current folder there, searched by this process or not: workers would take a `random.py` or a
    folder `timm` in it for the real ones.
    """
    from ray.job_config import JobConfig

    class DriversPath(JobConfig):
        def _runtime_env_has_working_dir(self) -> bool:
            return True  # the case in which Ray adds no folder

    library = os.path.dirname(os.__file__)
    first = itertools.takewhile(lambda folder: folder != library, sys.path)
    folders = [os.path.abspath(folder) for folder in first if os.path.isdir(folder or os.curdir)]
    return DriversPath(_py_driver_sys_path=folders[::-1])  # each is put before those already there


@contextlib.contextmanager
def _session_folder() -> Iterator[str | None]:
    """Ray's folder for a session of our own: a short one if its default is too deep for sockets, else None."""
    default = os.path.join(os.environ.get("RAY_TMPDIR", os.environ.get("TMPDIR", "/tmp")), "ray")
    longest = SOCKET_BYTES - BELOW_FOLDER
    if len(os.fsencode(default)) <= longest:
        yield None
        return
    try:
        folder = tempfile.mkdtemp(prefix="vergence-", dir="/tmp")
    except OSError as error:
        raise UserError(
            f"{default} is too long a folder for Ray's sockets ({longest} bytes at most), and /tmp takes none "
            f"({error.strerror}); set RAY_TMPDIR to a shorter one"
        ) from None
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def nodes(*, free: bool = False) -> list[Node]:
    """The living nodes of the session: all that they have, or what is free of it."""
    import ray
    from ray._private.state import available_resources_per_node

    if ray.util.client.ray.is_connected():  # Ray's client cannot ask for nodes, a task can
        inside: Any = ray.remote(num_cpus=0)(nodes)
        return ray.get(inside.remote(free=free))
    available = available_resources_per_node() if free else {}
    alive = [node for node in ray.nodes() if node["Alive"]]
    resources = {
        node["NodeID"]: available.get(node["NodeID"], {}) if free else node["Resources"] for node in alive
    }
    return [Node(has.get("CPU", 0.0), has.get("GPU", 0.0), name) for name, has in resources.items()]
