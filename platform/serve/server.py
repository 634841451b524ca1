"""The driver's side of serving: Ray, Ray Serve and the application, from start to drained end."""

import contextlib
import logging
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass

from ray import serve
from ray.serve.config import HTTPOptions
from ray.serve.schema import ApplicationStatus

from vergence.platform.cluster.capacity import Need, ScaleConfig, check_local
from vergence.platform.cluster.session import nodes, opened, place
from vergence.platform.errors import UserError, VergenceError
from vergence.platform.serve.app import application
from vergence.platform.serve.front import front
from vergence.platform.serve.settings import Settings

NAME = "vergence"  # of the application
LOWER = "--replicas or --threads"
REQUEST_S = 60.0  # after which a request is answered 408
KEEP_ALIVE_S = 75  # longer than the 60 s of common load balancers, so that they are the ones that hang up
OVERHEAD_CPUS = 0.1  # Serve's own actors take none; a need has a reader


@dataclass(frozen=True)
class Server:
    url: str
    metrics: str | None  # where Prometheus finds Ray's, Serve's and our metrics of this node
    gpu: bool


@contextlib.contextmanager
def serving(
    settings: Settings, *, host: str, port: int, metrics_port: int | None, gpus: bool | None
) -> Iterator[Server]:
    """The application, answering; at the end of the block it takes no more requests and finishes those it has.

    gpus: whether each replica takes a GPU; None: if the session has as many.
    Raises UserError: port taken, too few CPUs, or Ray Serve runs there already; VergenceError: it does not start.
    """
    scale = ScaleConfig(
        workers=settings.replicas, cpus_per_worker=settings.threads, gpus_per_worker=int(bool(gpus))
    )
    need = Need(scale, readers=1, reader_cpus=OVERHEAD_CPUS)
    own = place() == "own"
    if own:
        check_local(need, LOWER)
        _check_port(host, port)
    elif metrics_port is not None:
        raise UserError("--metrics-port: the nodes of a cluster have their own; leave it out")
    with (
        front(own) as environment,
        opened(need, lower=LOWER, metrics_port=metrics_port, environment=environment),
    ):
        logging.getLogger("ray.serve").setLevel(logging.ERROR)
        if serve.status().proxies:
            raise UserError(
                "Ray Serve runs in that cluster already; serve from another one, or by a RayService"
            )
        if gpus is None:
            gpus = sum(node.gpus for node in nodes()) >= settings.replicas
        try:
            _start(settings.model_copy(update={"gpu": gpus}), host, port)
            yield Server(f"http://{_shown(host)}:{port}", _metrics(), gpus)
            _drain(settings.drain_s)
        finally:
            if (
                not own
            ):  # one of our own ends whole; Serve's way to end it alone leaves Ray complaining of a lost task
                serve.shutdown()


def _start(settings: Settings, host: str, port: int) -> None:
    options = HTTPOptions(
        host=host, port=port, request_timeout_s=REQUEST_S, keep_alive_timeout_s=KEEP_ALIVE_S
    )
    try:
        serve.start(http_options=options)
        serve.run(application(settings), name=NAME, route_prefix="/")
    except (RuntimeError, TimeoutError) as error:
        status = serve.status().applications.get(NAME)
        said = [line for line in (status.message if status else str(error)).splitlines() if line.strip()]
        raise VergenceError(f"Ray Serve did not start the encoder: {said[-1] if said else error}") from error


def _drain(most_s: float) -> None:
    """The application ends: Serve takes its route away, and its replicas finish what they have."""
    serve.delete(NAME, _blocking=False)
    deadline = time.monotonic() + most_s + 10.0
    while time.monotonic() < deadline:
        app = serve.status().applications.get(NAME)
        if app is None or app.status == ApplicationStatus.NOT_STARTED:
            return
        time.sleep(0.1)


def _check_port(host: str, port: int) -> None:
    """UserError if nothing can listen there; Serve would say so in a log, and start on."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise UserError(
                f"{host}:{port}: {error.strerror or error}; choose another --host or --port"
            ) from None


def _metrics() -> str | None:
    import ray

    for node in ray.nodes():
        if node["Alive"] and node.get("MetricsExportPort", 0) > 0:
            return f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    return None


def _shown(host: str) -> str:
    return f"[{host}]" if ":" in host else host
