"""Object stores for tests, on this machine: moto's S3, and a web server of files with ranges; both with faults on demand."""

import contextlib
import http.client
import logging
import os
import random
import socket
import threading
import time
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Iterator
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

S3_ENVIRONMENT = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": "us-east-1"}


COUNT = "/-/requests"  # how many requests for bytes a web server has had so far


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes


class Faults:
    """What a server does wrong, to be changed while it runs.

    Shares of requests, drawn from a seed: errors (500), busy (429), resets (the connection is closed without an answer),
    halves (half of the body, then closed), lost (done, then closed without an answer).  latency_s: before each answer.
    away: no request is answered.  one_byte_a_second: of a body.  unconditional: conditions of requests are not looked at.
    says: to all that is not otherwise at fault.
    """

    def __init__(self, seed: int = 0) -> None:
        self.errors = self.busy = self.resets = self.halves = self.lost = self.latency_s = 0.0
        self.away = self.one_byte_a_second = self.unconditional = False
        self.says: Answer | None = None
        self.requests: list[str] = []  # `METHOD path` of all that came
        self._random, self._lock = random.Random(seed), threading.Lock()

    def draw(self, request: str) -> str | None:
        """What happens to this request."""
        with self._lock:
            self.requests.append(request)
            drawn = self._random.random()
        if self.away:
            return "reset"
        for name, share in {
            "error": self.errors, "busy": self.busy, "reset": self.resets, "half": self.halves,
            "lost": self.lost,
        }.items():  # fmt: skip
            if drawn < share:
                return name
            drawn -= share
        return None


class _Server(ThreadingHTTPServer, ABC):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, faults: Faults) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.faults = faults

    @abstractmethod
    def answer(self, method: str, path: str, headers: dict[str, str], body: bytes) -> Answer:
        """What a server without faults says."""

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # a client that is gone


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def setup(self) -> None:
        super().setup()
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def handle_one(self) -> None:
        faults = self.server.faults
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        fault = faults.draw(f"{self.command} {self.path}")
        if faults.latency_s:
            time.sleep(faults.latency_s)
        if fault == "reset":
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        if fault in ("error", "busy"):
            answer = Answer(500 if fault == "error" else 429, {}, b"try again")
        elif fault == "refused":
            answer = Answer(403, {}, b"")
        elif faults.says is not None:
            answer = faults.says
        else:
            given = dict(self.headers.items())
            if faults.unconditional:
                given = {name: value for name, value in given.items() if not name.lower().startswith("if-")}
            answer = self.server.answer(self.command, self.path, given, body)
        if fault == "lost":
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        self.send_response(answer.status)
        headers = {"Content-Length": str(len(answer.body))} | answer.headers
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if faults.one_byte_a_second:
            for i in range(len(answer.body)):
                self.wfile.write(answer.body[i : i + 1])
                time.sleep(1)
        elif fault == "half" and answer.body:
            self.wfile.write(answer.body[: len(answer.body) // 2])
            self.close_connection = True
        else:
            self.wfile.write(answer.body)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = handle_one

    def log_message(self, format: str, *arguments: object) -> None:
        pass


class _Files(_Server):
    def __init__(self, folder: Path, faults: Faults) -> None:
        super().__init__(faults)
        self.folder = folder

    def answer(self, method: str, path: str, headers: dict[str, str], body: bytes) -> Answer:
        if path == COUNT:
            return Answer(
                200,
                {},
                b"%d" % sum(each.startswith("GET") and COUNT not in each for each in self.faults.requests),
            )
        file = self.folder / unquote(path).lstrip("/")
        if method not in ("GET", "HEAD"):
            return Answer(405, {}, b"")
        if not file.is_file():
            return Answer(404, {}, b"")
        with file.open("rb") as opened:
            status = os.fstat(opened.fileno())
            size, start, stop = status.st_size, 0, status.st_size
            asked = headers.get("Range") or headers.get("range")
            if asked:
                first, _, last = asked.removeprefix("bytes=").partition("-")
                start, stop = int(first), min(size, int(last) + 1)
            about = {
                "ETag": f'"{size}-{status.st_mtime_ns}"',
                "Last-Modified": formatdate(status.st_mtime, usegmt=True),
                "Content-Length": str(stop - start),
            }
            if asked:
                about["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
            data = b"" if method == "HEAD" else os.pread(opened.fileno(), stop - start, start)
        return Answer(206 if asked else 200, about, data)


class _Passed(_Server):
    """Passes every request on to another server."""

    def __init__(self, upstream: str, faults: Faults) -> None:
        super().__init__(faults)
        self.upstream = upstream

    def answer(self, method: str, path: str, headers: dict[str, str], body: bytes) -> Answer:
        kept = {name: value for name, value in headers.items() if name.lower() not in ("host", "connection")}
        with contextlib.closing(http.client.HTTPConnection(urlsplit(self.upstream).netloc)) as upstream:
            upstream.request(method, path, body, kept)  # urllib would say that the body is a form
            found = upstream.getresponse()
            status, about, data = found.status, found.headers, found.read()
        left_out = ("connection", "transfer-encoding", "server", "date", "content-length")
        own = {name: value for name, value in about.items() if name.lower() not in left_out}
        length = about.get("Content-Length") if method == "HEAD" else None
        return Answer(status, own | ({"Content-Length": length} if length else {}), data)


@contextlib.contextmanager
def _serving(server: _Server) -> Iterator[str]:
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextlib.contextmanager
def web_server(folder: Path, faults: Faults | None = None) -> Iterator[str]:
    """The files of a folder with ranges and ETags; its address."""
    with _serving(_Files(folder, faults or Faults())) as address:
        yield address


@contextlib.contextmanager
def s3_server(bucket: str, faults: Faults | None = None) -> Iterator[dict[str, str]]:
    """moto's S3 with a bucket, which all servers of a process share; the environment in which `s3://BUCKET` is there."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line a request
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    upstream = f"http://{host}:{port}"
    try:
        urllib.request.urlopen(urllib.request.Request(f"{upstream}/{bucket}", method="PUT")).close()
        with _serving(_Passed(upstream, faults or Faults())) as address:
            yield S3_ENVIRONMENT | {"AWS_ENDPOINT_URL": address}
    finally:
        server.stop()


def main() -> None:
    """A web server of a FOLDER that takes some SECONDS for each answer, until it is killed; prints its address."""
    import sys

    faults = Faults()
    faults.latency_s = float(sys.argv[2])
    with web_server(Path(sys.argv[1]), faults) as address:
        print(address, flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
