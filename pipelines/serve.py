"""`vergence serve`: an encoder behind HTTP, on Ray Serve."""

import argparse
import contextlib
import importlib.util
import ipaddress
import json
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from pydantic import ValidationError

from vergence.platform.errors import UserError
from vergence.platform.serve.bearer import TOKEN
from vergence.platform.serve.settings import Settings

DEVICES = {"auto": None, "cpu": False, "cuda": True}


def configure(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "encoder",
        metavar="ENCODER",
        help="a run's name, a .pt2 file or models:/NAME@ALIAS, whose new versions are taken as they come",
    )
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="address to listen on (default: this machine only)")
    add("--port", type=int, default=8000, help="default: 8000")
    add("--metrics-port", type=int, metavar="PORT", help="for Prometheus (default: a free one, printed)")
    add("--replicas", type=int, default=1, metavar="N", help="processes that embed (default: 1)")
    add("--threads", type=int, default=1, metavar="N", help="CPUs of each (default: 1)")
    add("--device", default="auto", choices=DEVICES, help="auto: a GPU for each replica if there are as many")
    add(
        "--batch",
        type=int,
        default=32,
        metavar="N",
        help="requests embedded together (default: 32; 1: each alone)",
    )
    add(
        "--wait-ms",
        type=float,
        default=5.0,
        metavar="MS",
        help="the first of them waits so long (default: 5)",
    )
    add("--max-bytes", type=int, default=10 << 20, metavar="N", help="of a request (default: 10 MiB)")
    add("--max-pixels", type=int, default=25_000_000, metavar="N", help="of an image (default: 25 million)")
    add("--follow-s", type=float, default=30.0, metavar="S", help="look at the alias so often (default: 30)")
    add(
        "--drain-s", type=float, default=30.0, metavar="S", help="to finish requests at the end (default: 30)"
    )
    add("--json", action="store_true", help="say as JSON where it answers")
    parser.epilog = f"""\
POST /embed takes a JPEG, PNG or WebP, or uint8 pixels as npy: (H, W, 3) or (n, H, W, 3), n at most 256. It gives
JSON {{"encoder": ..., "embeddings": [[...]]}}, or npy float32 (n, dim) with `Accept: application/x-npy`.
GET /metadata gives the card, GET /-/healthz says whether it is up. With {TOKEN} set, all but the last
ask for `Authorization: Bearer TOKEN`; only then may --host be more than this machine.
SIGTERM and Ctrl-C end it: requests in flight are finished first, exit code 0.

examples:
  vergence serve models:/simclr-cifar10@champion
  vergence serve simclr-cifar10 --port 8001 --batch 64 --wait-ms 2
  {TOKEN}=... vergence serve models:/simclr-cifar10@champion --host 0.0.0.0 --replicas 4
  curl --data-binary @cat.jpg http://127.0.0.1:8000/embed"""


def main(args: argparse.Namespace) -> int:
    answers = sys.stdout  # while the session is open, that of this process is stderr
    if importlib.util.find_spec("starlette") is None or importlib.util.find_spec("uvicorn") is None:
        raise UserError("serving needs Ray Serve: pip install 'vergence[serve]'")
    settings = _settings(args)
    _check_open(args.host)
    from vergence.platform.encoders.load import load_encoder
    from vergence.platform.serve.server import serving

    encoder = load_encoder(settings.encoder)  # what is wrong with it is said at once, and here
    with (
        _until_signal() as ended,
        serving(
            settings,
            host=args.host,
            port=args.port,
            metrics_port=args.metrics_port,
            gpus=DEVICES[args.device],
        ) as server,
    ):
        if args.json:
            about = {"url": server.url, "metrics": server.metrics, "encoder": encoder.name, "gpu": server.gpu}
            print(json.dumps(about), file=answers, flush=True)
        else:
            shape = f"{encoder.size} x {encoder.size} pixels in, {encoder.dim} numbers out"
            print(
                f"{encoder.name} at {server.url}/embed: {shape}; metrics at {server.metrics}",
                file=answers,
                flush=True,
            )
        ended.wait()
        if not args.json:
            print("finishing the requests in flight", file=answers, flush=True)
    return 0


def _settings(args: argparse.Namespace) -> Settings:
    names = ("replicas", "threads", "batch", "wait_ms", "max_bytes", "max_pixels", "follow_s", "drain_s")
    # replicas may have another current folder
    encoder = str(Path(args.encoder).absolute()) if Path(args.encoder).exists() else args.encoder
    try:
        return Settings(encoder=encoder, **{name: getattr(args, name) for name in names})
    except ValidationError as error:
        first = error.errors()[0]
        flag = str(first["loc"][0]).replace("_", "-")
        raise UserError(f"--{flag} {first['input']}: {first['msg'].lower()}") from None


def _check_open(host: str) -> None:
    """UserError: everybody who reaches this machine could use the encoder."""
    try:
        is_local = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        is_local = False
    if not is_local and TOKEN not in os.environ:
        raise UserError(
            f"--host {host} opens the encoder to other machines: set {TOKEN} to a token of your choice"
        )


@contextlib.contextmanager
def _until_signal() -> Iterator[threading.Event]:
    """Set by the first SIGINT or SIGTERM inside the block; a second one ends the command at once."""
    ended = threading.Event()

    def handle(number: int, frame: FrameType | None) -> None:
        if ended.is_set():
            raise SystemExit(128 + number)
        ended.set()

    numbers = signal.SIGINT, signal.SIGTERM
    previous = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield ended
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
