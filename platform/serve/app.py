"""The Ray Serve application: replicas that embed what requests hold, in batches.

`vergence serve` runs it; a RayService does by `import_path: vergence.platform.serve.app:application`, with the fields
of `Settings` as `args`.
"""

import asyncio
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import numpy as np
import torch
from ray import serve
from ray.serve.metrics import Counter, Histogram
from ray.serve.schema import LoggingConfig
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from vergence.platform.encoders.encoder import Images, LoadedEncoder, Rows
from vergence.platform.encoders.resize import resize
from vergence.platform.home import home
from vergence.platform.mlflow_store import tracking_uri
from vergence.platform.serve.bearer import admits, token_digest
from vergence.platform.serve.current import Current
from vergence.platform.serve.request import Refused, read_images, written
from vergence.platform.serve.settings import Settings

DECODERS = 2  # threads of a replica that read and resize images
QUEUED = 1024  # requests that wait for a replica; more are answered 503 by Ray Serve
LATENCIES_S = [0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10]
BATCHES = [2.0**i for i in range(9)]


def application(settings: Settings) -> serve.Application:
    """What Ray Serve runs. The token is read from this process's environment, and only its digest travels."""
    deployment: Any = serve.deployment(
        Replica,
        name="encoder",
        num_replicas=settings.replicas,
        ray_actor_options={"num_cpus": settings.threads, "num_gpus": int(settings.gpu)},
        max_ongoing_requests=max(64, 4 * settings.batch),  # two batches at work, two that gather
        max_queued_requests=QUEUED,
        graceful_shutdown_timeout_s=settings.drain_s,
        graceful_shutdown_wait_loop_s=0.1,
        logging_config=LoggingConfig(enable_access_log=False),
    )
    where = {"VERGENCE_HOME": str(home()), "MLFLOW_TRACKING_URI": tracking_uri()}
    return deployment.bind(settings, token_digest(), where)


@dataclass(frozen=True)
class Prepared:
    """Images of one request, as the encoder takes them that was in use when they came."""

    encoder: LoadedEncoder
    images: Images


def prepare(body: bytes, max_pixels: int, encoder: LoadedEncoder) -> Prepared:
    """Raises Refused."""
    images = [resize(image, encoder.size) for image in read_images(body, max_pixels)]
    return Prepared(encoder, np.stack(images))


def together(batch: Sequence[Prepared]) -> list[Rows]:
    """The vectors of each request, by its own encoder: one call for all, two while a version is replaced."""
    found: dict[int, Rows] = {}
    for encoder in {id(prepared.encoder): prepared.encoder for prepared in batch}.values():
        its = [i for i, prepared in enumerate(batch) if prepared.encoder is encoder]
        rows = encoder(np.concatenate([batch[i].images for i in its]))
        ends = np.cumsum([len(batch[i].images) for i in its])
        found |= dict(zip(its, np.split(rows, ends[:-1])))
    return [found[i] for i in range(len(batch))]


class Replica:
    """Answers POST /embed and GET /metadata."""

    def __init__(self, settings: Settings, token: bytes | None, where: dict[str, str]) -> None:
        os.environ.update(where)
        torch.set_num_threads(settings.threads)
        self.settings, self.token = settings, token
        self.requests = Counter("vergence_serve_requests", "Requests, by HTTP status", ("status",))
        self.seconds = Histogram("vergence_serve_seconds", "From request to response", LATENCIES_S)
        self.batches = Histogram("vergence_serve_batch_images", "Images embedded together", BATCHES)
        failures = Counter("vergence_serve_follow_failures", "Looks at an alias that failed")
        device = torch.device("cuda" if settings.gpu else "cpu")
        self.current = Current(settings.encoder, device, settings.follow_s, failures.inc)
        self.decoders = ThreadPoolExecutor(DECODERS, thread_name_prefix="decode")
        self.engine = ThreadPoolExecutor(1, thread_name_prefix="embed")
        batching: Any = self._embed
        batching.set_max_batch_size(settings.batch)
        batching.set_batch_wait_timeout_s(settings.wait_ms / 1000)

    async def __call__(self, request: Request) -> Response:
        start_s = time.perf_counter()
        try:
            response = await self._answer(request)
        except Refused as refused:
            response = JSONResponse({"error": str(refused)}, refused.status, refused.headers)
        self.requests.inc(1, {"status": f"{response.status_code:d}"})
        self.seconds.observe(time.perf_counter() - start_s)
        return response

    async def _answer(self, request: Request) -> Response:
        if not admits(request.headers.get("authorization", ""), self.token):
            reason = "a bearer token is asked for: Authorization: Bearer TOKEN"
            raise Refused(HTTPStatus.UNAUTHORIZED, reason, {"WWW-Authenticate": "Bearer"})
        asked = request.method, request.scope["path"]
        if asked == ("GET", "/metadata"):
            return JSONResponse(about(self.current.encoder))
        if asked != ("POST", "/embed"):
            known = "POST /embed, GET /metadata, GET /-/healthz"
            raise Refused(HTTPStatus.NOT_FOUND, f"no {' '.join(asked)} here; there are {known}")
        body = await self._body(request)
        loop = asyncio.get_running_loop()
        most = self.settings.max_pixels
        prepared = await loop.run_in_executor(self.decoders, prepare, body, most, self.current.encoder)
        rows = await self._embed(prepared)
        content, media_type = written(rows, prepared.encoder.name, request.headers.get("accept", ""))
        return Response(content, media_type=media_type, headers={"X-Encoder": prepared.encoder.name})

    @serve.batch
    async def _embed(self, batch: list[Prepared]) -> list[Rows]:
        self.batches.observe(sum(len(prepared.images) for prepared in batch))
        return await asyncio.get_running_loop().run_in_executor(self.engine, together, batch)

    async def _body(self, request: Request) -> bytes:
        """Refused with 413 as soon as it is known to be too long."""
        most, body = self.settings.max_bytes, bytearray()
        too_long = Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"the body has more than {most:,} bytes")
        if int(request.headers.get("content-length", 0)) > most:
            raise too_long
        async for chunk in request.stream():
            body += chunk
            if len(body) > most:
                raise too_long
        return bytes(body)


def about(encoder: LoadedEncoder) -> dict[str, Any]:
    """What GET /metadata says: the card without its recipe, which names places of the machine that trained it."""
    card = encoder.card and encoder.card.model_dump(mode="json", by_alias=True, exclude={"recipe"})
    return {
        "encoder": encoder.name,
        "digest": encoder.digest,
        "size": encoder.size,
        "dim": encoder.dim,
        "card": card,
    }
