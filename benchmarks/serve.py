"""`vergence serve` under 32 clients that ask one after the other: with batching, and with each request alone.

python -m benchmarks.serve 2    for so many seconds of load in one round: to see that it runs
"""

import contextlib
import http.client
import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from benchmarks.measure import interleaved, spread
from vergence.methods.parts.backbones import EncoderConfig, build_encoder
from vergence.platform.encoders.export import EncoderCard, export_encoder

CLIENTS = 32
LOAD_S, WARM_S = 15.0, 3.0
SIZE = 32
AT_LEAST = 2.0  # times the requests of one at a time
VARIANTS = {"batches of up to 32": "32", "one at a time": "1"}
ENCODER = EncoderConfig(
    name="resnet18"
)  # its stem leaves 1 x 1 of 32 x 32: weights, not pixels, are what costs


class Load(NamedTuple):
    requests_per_s: float
    p50_ms: float
    p99_ms: float
    errors: int


def run(rounds: int, says: Callable[[str], None], load_s: float = LOAD_S) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        program = export(Path(folder))
        variants = {name: partial(once, program, batch, load_s) for name, batch in VARIANTS.items()}
        found = interleaved(variants, rounds, says)
    batched, alone = (spread([load.requests_per_s for load in found[name]]) for name in VARIANTS)
    return {
        "clients": CLIENTS,
        "requests_per_s": dict(zip(VARIANTS, (batched, alone))),
        "milliseconds": {
            f"{name}, {quantile}": spread([getattr(load, f"{quantile}_ms") for load in loads])
            for name, loads in found.items()
            for quantile in ("p50", "p99")
        },
        "at_least": {"requests in batches / one at a time": (batched["median"] / alone["median"], AT_LEAST)},
        "at_most": {"errors": (float(sum(load.errors for loads in found.values() for load in loads)), 0.0)},
    }


def export(folder: Path) -> Path:
    """An encoder as initialised: as fast as a trained one."""
    torch.manual_seed(0)
    encoder = build_encoder(ENCODER)
    card = EncoderCard(
        name="bench",
        method="none",
        backbone=ENCODER.model_dump(),
        dim=512,
        size=SIZE,
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
        images_seen=0,
        recipe_digest="",
        data_digest="",
        code_version="",
    )
    return export_encoder(encoder, card, folder / "exports") / "encoder.pt2"


def once(program: Path, batch: str, load_s: float) -> Load:
    """A server of its own, warmed up, loaded, ended."""
    with server(program, batch) as port:
        load(port, WARM_S)
        return load(port, load_s)


@contextlib.contextmanager
def server(program: Path, batch: str) -> Iterator[int]:
    port = free_port()
    command = [sys.executable, "-m", "vergence.pipelines.cli", "serve", str(program), "--port", str(port)]
    process = subprocess.Popen(
        [*command, "--batch", batch, "--json"],
        env={name: value for name, value in os.environ.items() if name != "VERGENCE_SERVE_TOKEN"},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        if not process.stdout.readline().startswith("{"):
            raise RuntimeError(f"`vergence serve` ended with {process.wait()}")
        yield port
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def load(port: int, seconds: float) -> Load:
    """CLIENTS clients, each with a connection that stays and one request at a time."""
    body = picture()
    times: list[list[float]] = [[] for _ in range(CLIENTS)]
    errors = [0] * CLIENTS
    end = time.perf_counter() + seconds

    def client(number: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        while (start := time.perf_counter()) < end:
            try:
                connection.request("POST", "/embed", body, {"Accept": "application/x-npy"})
                answer = connection.getresponse()
                answer.read()
                errors[number] += answer.status != 200
            except OSError:
                errors[number] += 1
                connection.close()
            times[number].append(time.perf_counter() - start)
        connection.close()

    threads = [threading.Thread(target=client, args=(number,)) for number in range(CLIENTS)]
    start_s = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    elapsed_s, taken_ms = time.perf_counter() - start_s, 1000 * np.concatenate(times)
    p50, p99 = np.percentile(taken_ms, (50, 99))
    return Load(len(taken_ms) / elapsed_s, float(p50), float(p99), sum(errors))


def picture() -> bytes:
    """A JPEG of SIZE x SIZE, 1 kB."""
    from PIL import Image

    waves = (
        np.sin(np.arange(SIZE)[:, None, None] * 0.4 + np.arange(SIZE)[None, :, None] * 0.2 + np.arange(3))
        * 100
        + 128
    )
    file = io.BytesIO()
    Image.fromarray(waves.astype(np.uint8)).save(file, "JPEG", quality=90)
    return file.getvalue()


def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    print(json.dumps(run(1, print, float(sys.argv[1])), indent=1))
