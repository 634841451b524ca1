"""Ray clusters as others start them: `ray start` with a token and a dashboard, nodes that are killed, lost connections."""

import contextlib
import os
import socket
import socketserver
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

import psutil

TOKEN = "0123456789abcdef" * 2
READY_S = 120


class Cluster:
    """A head, and the nodes that are added to it."""

    def __init__(self, folder: Path, path: str, cpus: int, extra: Mapping[str, str]) -> None:
        self.folder, self.nodes = folder, list[subprocess.Popen]()
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
            "PATH": path, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN, "RAY_worker_niceness": "0", **extra,
        }  # fmt: skip
        self.port, self.dashboard_port, client = free_ports(3)
        self._start(
            "--head", f"--port={self.port}", f"--dashboard-port={self.dashboard_port}",
            f"--ray-client-server-port={client}", "--include-dashboard=true", f"--temp-dir={folder / 'ray'}", cpus=cpus,
        )  # fmt: skip

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.dashboard_port}"

    def add_node(self, cpus: int) -> None:
        head = (self.folder / "ray" / "ray_current_cluster").read_text()
        self._start(f"--address={head}", cpus=cpus)

    def kill_node(self) -> None:
        """kill -9 of all processes of the newest node."""
        kill(self.nodes.pop())

    def _start(self, *options: str, cpus: int) -> None:
        agent, grpc, metrics = free_ports(3)
        log = self.folder / f"node-{time.monotonic_ns()}.log"
        with log.open("w") as file:
            node = subprocess.Popen(
                [
                    Path(sys.executable).parent / "ray", "start", "--block", f"--num-cpus={cpus}", *options,
                    "--object-store-memory=100000000", f"--dashboard-agent-listen-port={agent}",
                    f"--dashboard-agent-grpc-port={grpc}", f"--metrics-export-port={metrics}",
                    "--min-worker-port=0", "--max-worker-port=0",
                ],
                env=self.environment, stdout=file, stderr=file, start_new_session=True, cwd=self.folder,
            )  # fmt: skip
        self.nodes.append(node)
        deadline = time.monotonic() + READY_S
        while "Ray runtime started" not in log.read_text():
            assert node.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)


@contextlib.contextmanager
def cluster(
    cpus: int, path: str = os.environ["PATH"], extra: Mapping[str, str] = MappingProxyType({})
) -> Iterator[Cluster]:
    """A cluster whose head has so many CPUs; `path` is the PATH of its jobs, `extra` what their environment has besides."""
    with tempfile.TemporaryDirectory(prefix="vg-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        nodes: list[subprocess.Popen] = []
        try:
            started = Cluster(Path(folder), path, cpus, extra)
            nodes = started.nodes
            yield started
        finally:
            for node in nodes[::-1]:
                kill(node)


def kill(process: subprocess.Popen) -> None:
    """kill -9 of a process and of all below it."""
    with contextlib.suppress(psutil.NoSuchProcess):
        parent = psutil.Process(process.pid)
        for member in [*parent.children(recursive=True), parent]:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
    process.wait()


def free_ports(number: int) -> list[int]:
    """Ports that nobody listens on."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("", 0))) for _ in range(number)]
        return [each.getsockname()[1] for each in sockets]


class Line(socketserver.ThreadingTCPServer):
    """A line to a server on this machine, which can be cut."""

    daemon_threads, block_on_close = True, False

    def __init__(self, target: int) -> None:
        super().__init__(("127.0.0.1", 0), _Forward)
        self.target, self.is_down = target, False
        self.loses = b""  # answers to requests that begin so, once
        self.ends: list[socket.socket] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def cut(self) -> None:
        """End all connections."""
        for end in self.ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        self.ends.clear()


class _Forward(socketserver.BaseRequestHandler):
    server: Line

    def handle(self) -> None:
        if self.server.is_down:
            return
        with socket.create_connection(("127.0.0.1", self.server.target)) as there:
            self.server.ends += [self.request, there]
            request = self.request.recv(65536)
            there.sendall(request)
            if self.server.loses and request.startswith(self.server.loses):
                self.server.loses = b""
                threading.Thread(target=_pump, args=(self.request, there), daemon=True).start()
                there.recv(65536)
                return
            threading.Thread(target=_pump, args=(self.request, there), daemon=True).start()
            _pump(there, self.request)


def _pump(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while content := source.recv(65536):
            target.sendall(content)
        target.shutdown(socket.SHUT_WR)


@contextlib.contextmanager
def line(target: int) -> Iterator[Line]:
    """A line to a port of this machine."""
    with Line(target) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            server.cut()
            thread.join()
