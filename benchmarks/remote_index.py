"""The index of shards in a store: seconds, requests and memory, with files beside the shards and without.

python -m benchmarks.remote_index [--shards 1000] [--samples 1000] [--latency-ms 20]

A server of its own on this machine speaks as much of S3 as is needed. All its shards are the same bytes, `samples` tiny
members with a class each, under names of their own; what is put is kept in memory. Each figure is of a process of its own.
"""

import argparse
import io
import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

BUCKET = "bucket"
PAGE = 1000  # names an answer, as S3 has it
PNG = b"\x89PNG\r\n\x1a\n" + bytes(24)  # what an image begins with; nobody decodes it here
ENVIRONMENT = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": "us-east-1"}

INDEX = """
import json, resource, sys, time
from pathlib import Path
from vergence.platform.data.index import open_index
from vergence.platform.store import store_of
store_of(sys.argv[1])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
began, cpu = time.perf_counter(), time.process_time()
index = open_index(sys.argv[1], Path(sys.argv[2]))
seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps(dict(samples=len(index), seconds=seconds, cpu_s=cpu, mb_before=before / 1024, mb_peak=peak / 1024)))
"""


def shard(num_samples: int) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for i in range(num_samples):
            for extension, data in (("png", PNG), ("cls", b"%d" % (i % 1000))):
                info = tarfile.TarInfo(f"{i:09d}.{extension}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return file.getvalue()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, names: list[str], body: bytes, latency_s: float) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.objects, self.latency_s = dict.fromkeys(names, body), latency_s
        self.requests: Counter[str] = Counter()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        name = url.path.removeprefix(f"/{BUCKET}").lstrip("/")
        if name == "":
            self._answer("LIST", 200, self._page(parse_qs(url.query)))
        elif (found := self.server.objects.get(name)) is None:
            self._answer(f"GET {_kind(name)} (not there)", 404, b"<Error><Code>NoSuchKey</Code></Error>")
        else:
            asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range") or "")
            start, stop = (int(asked[1]), int(asked[2]) + 1) if asked else (0, len(found))
            about = {"Content-Range": f"bytes {start}-{stop - 1}/{len(found)}"} if asked else {}
            self._answer(f"GET {_kind(name)}", 206 if asked else 200, found[start:stop], about)

    def do_PUT(self) -> None:
        name = urlsplit(self.path).path.removeprefix(f"/{BUCKET}/")
        self.server.objects[name] = self.rfile.read(int(self.headers["Content-Length"]))
        self._answer(f"PUT {_kind(name)}", 200, b"")

    def _page(self, query: dict[str, list[str]]) -> bytes:
        prefix, after = query.get("prefix", [""])[0], query.get("continuation-token", [""])[0]
        names = sorted(name for name in self.server.objects if name.startswith(prefix) and name > after)
        some = list(islice(names, PAGE))
        contents = "".join(
            f"<Contents><Key>{name}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified><ETag>&quot;1&quot;</ETag>"
            f"<Size>{len(self.server.objects[name])}</Size></Contents>"
            for name in some
        )
        more = len(names) > PAGE
        token = f"<NextContinuationToken>{some[-1]}</NextContinuationToken>" if more else ""
        more_text = f"<IsTruncated>{str(more).lower()}</IsTruncated>{token}"
        return f"<ListBucketResult>{more_text}{contents}</ListBucketResult>".encode()

    def _answer(self, kind: str, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.server.requests[kind] += 1
        time.sleep(self.server.latency_s)
        self.send_response(status)
        about = {
            "ETag": '"1"',
            "Last-Modified": "Thu, 01 Jan 2026 00:00:00 GMT",
            "Content-Length": str(len(body)),
        }
        for name, value in (about | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        pass


def _kind(name: str) -> str:
    return "file beside it" if name.endswith(".idx") else "shard"


@contextmanager
def _serving(server: _Server) -> Iterator[str]:
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shards", type=int, default=1000)
    parser.add_argument("--samples", type=int, default=1000, help="a shard (default 1000)")
    parser.add_argument("--latency-ms", type=float, default=0.0, help="before each answer (default 0)")
    options = parser.parse_args()
    body = shard(options.samples)
    names = [f"set/train-{i:06d}.tar" for i in range(options.shards)]
    print(f"{len(names):,} shards x {options.samples:,} samples, {len(names) * len(body) / 1e6:,.0f} MB")
    server = _Server(names, body, options.latency_ms / 1000)
    with _serving(server) as address, tempfile.TemporaryDirectory() as folder:
        environment = os.environ | ENVIRONMENT | {"AWS_ENDPOINT_URL": address}
        ways = {"read once": "1", "files beside the shards": "2", "index kept here": "2"}
        for way, cache in ways.items():
            server.requests.clear()
            command = [sys.executable, "-c", INDEX, f"s3://{BUCKET}/set", str(Path(folder, cache))]
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
            print(
                json.dumps({"way": way, **json.loads(done.stdout), "requests": dict(server.requests)}),
                flush=True,
            )
        beside = sum(len(data) for name, data in server.objects.items() if name.endswith(".idx"))
        print(
            f"files beside the shards: {beside / 1e6:.2f} MB, {beside / len(names) / options.samples:.1f} bytes a sample"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
