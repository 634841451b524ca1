"""MLflow stores for tests: a real server with SQLite or PostgreSQL and S3, and a server that only refuses."""

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

START_S = 120


@contextlib.contextmanager
def mlflow_server(
    folder: Path,
    port: int = 0,
    *,
    database: str | None = None,
    artifacts: str | None = None,
    arguments: Sequence[str] = (),
    **environment: str,
) -> Iterator[str]:
    """A real `mlflow server` on this machine; its address.

    database, artifacts: where it keeps them; by default SQLite and a folder in `folder`. arguments, environment: its own.
    """
    port = port or free_port()
    command = [
        *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"),
        *("--backend-store-uri", database or f"sqlite:///{folder}/mlflow.db"),
        *("--artifacts-destination", artifacts or str(folder / "artifacts"), *arguments),
    ]  # fmt: skip
    # no job runner: saves 10 s and 230 MB
    own = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"} | environment
    with started(command, folder / "server.log", f"http://127.0.0.1:{port}/health", cwd=folder, env=own):
        yield f"http://127.0.0.1:{port}"


@contextlib.contextmanager
def started(command: Sequence[str], log: Path, probe: str, **options: Any) -> Iterator[None]:
    """A server, which answers at the address `probe` inside the block and is gone after it."""
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True, **options)
    try:
        deadline = time.monotonic() + START_S
        while not _is_up(probe):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, f"{command[0]} did not start: {log.read_text()}"
            time.sleep(0.1)
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):  # it has ended by itself, which was told
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@contextlib.contextmanager
def postgres() -> Iterator[str]:
    """A PostgreSQL server of its own; the address of an empty database. It does not run as root: then as another user.

    The driver is named: SQLAlchemy 2.1 takes psycopg 3 for a plain postgresql://.
    """
    binaries = Path(shutil.which("initdb") or "").resolve().parent
    as_user: list[str] = []
    with tempfile.TemporaryDirectory(
        prefix="postgres-"
    ) as temporary:  # pytest's own is closed to other users
        folder = Path(temporary)
        if os.getuid() == 0:
            user = pwd.getpwnam("postgres")
            os.chown(folder, user.pw_uid, user.pw_gid)
            as_user = ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
        data, port = folder / "data", free_port()
        initdb = [str(binaries / "initdb"), "-D", str(data), "-U", "vergence", "-A", "trust", "--no-sync"]
        subprocess.run([*as_user, *initdb], check=True, capture_output=True, cwd=folder)
        server = [
            *(str(binaries / "postgres"), "-D", str(data), "-p", str(port), "-k", str(folder)),
            *("-c", "listen_addresses=127.0.0.1", "-c", "fsync=off"),
        ]
        with (folder / "postgres.log").open("w") as log:
            process = subprocess.Popen([*as_user, *server], stdout=log, stderr=log, cwd=folder)
        try:
            ready = [str(binaries / "pg_isready"), "-h", "127.0.0.1", "-p", str(port), "-t", "1"]
            deadline = time.monotonic() + START_S
            while subprocess.run(ready, capture_output=True, check=False).returncode:
                assert process.poll() is None, (folder / "postgres.log").read_text()
                assert time.monotonic() < deadline, "PostgreSQL did not start"
                time.sleep(0.1)
            yield f"postgresql+psycopg2://vergence@127.0.0.1:{port}/postgres"
        finally:
            process.send_signal(signal.SIGINT)  # it ends its sessions, and itself
            process.wait(30)


@contextlib.contextmanager
def s3(folder: Path, bucket: str) -> Iterator[dict[str, str]]:
    """An S3-compatible store with an empty bucket; the environment that leads MLflow and boto3 to it."""
    import boto3

    port = free_port()
    address = f"http://127.0.0.1:{port}"
    keys = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with started(command, folder / "s3.log", f"{address}/moto-api/"):
        client = boto3.client(
            "s3",
            endpoint_url=address,
            aws_access_key_id="test",
            aws_secret_access_key="test",
            region_name="us-east-1",
        )
        client.create_bucket(Bucket=bucket)
        client.close()
        yield {"MLFLOW_S3_ENDPOINT_URL": address, **keys}


@contextlib.contextmanager
def forwarding(port: int, address: str) -> Iterator[None]:
    """Makes a server answer on another port of this machine too: the late start of a server, without its seconds."""
    target = urlparse(address)

    def carry(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)

    def accept() -> None:
        with contextlib.suppress(OSError):  # closed below
            while True:
                client = sockets.enter_context(listener.accept()[0])
                server = sockets.enter_context(socket.create_connection((target.hostname, target.port)))
                for pair in ((client, server), (server, client)):
                    threading.Thread(target=carry, args=pair, daemon=True).start()

    with contextlib.ExitStack() as sockets:
        listener = sockets.enter_context(socket.create_server(("127.0.0.1", port)))
        threading.Thread(target=accept, daemon=True).start()
        yield
        listener.shutdown(socket.SHUT_RDWR)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _is_up(probe: str) -> bool:
    try:
        with urllib.request.urlopen(probe, timeout=2) as answer:
            return answer.status == 200
    except OSError:
        return False


class Refusing:
    """An HTTP server that answers everything with one status and body; `requests` counts."""

    def __init__(self, status: int, body: str = "") -> None:
        self.status, self.body, self.requests = status, body, 0

    def __enter__(self) -> "Refusing":
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.requests += 1
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                data = outer.body.encode()
                self.send_response(outer.status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_POST = do_GET

            def log_message(self, *arguments: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()
