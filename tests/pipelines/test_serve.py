"""`vergence serve` as a user runs it: one process, a real registry, real clients, a real SIGTERM at the end."""

import contextlib
import http.client
import importlib.util
import io
import json
import os
import re
import signal
import socket
import subprocess
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from mlflow_stores import free_port
from PIL import Image
from runs_for_real import kill_everything, start
from shard_files import png
from tiny_encoder import make_card, make_encoder

from vergence.pipelines import cli
from vergence.platform.encoders import registry
from vergence.platform.encoders.encoder import LoadedEncoder
from vergence.platform.encoders.export import export_encoder
from vergence.platform.encoders.load import load_encoder
from vergence.platform.encoders.resize import resize
from vergence.platform.mlflow_store import artifacts_of, store, tracking_uri

NAME, TOKEN = "tiny-served", "s3cret"
IMAGE = np.random.default_rng(0).integers(0, 256, (20, 24, 3), dtype=np.uint8)
MAX_BYTES = 250_000
READY_S = 180


@dataclass
class Answer:
    status: int
    body: bytes
    headers: dict[str, str]


@dataclass(frozen=True)
class Served:
    process: subprocess.Popen[str]
    port: int
    metrics: str
    home: Path
    log: Path
    encoders: dict[str, LoadedEncoder]  # by the name that answers give

    def ask(
        self,
        body: Any = None,
        *,
        path: str = "/embed",
        method: str = "POST",
        token: str | None = f"Bearer {TOKEN}",
        accept: str = "",
        sent: Callable[[], object] = lambda: None,
    ) -> Answer:
        """One request on a connection of its own."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            headers = {"Accept": accept} | ({"Authorization": token} if token else {})
            connection.request(method, path, body, headers)
            sent()
            answer = connection.getresponse()
            return Answer(answer.status, answer.read(), {k.lower(): v for k, v in answer.getheaders()})
        finally:
            connection.close()

    def vectors(self, body: bytes) -> tuple[str, np.ndarray]:
        """Who answered, and what; the answer is asserted to be one."""
        answer = self.ask(body)
        assert answer.status == 200, answer.body
        said = json.loads(answer.body)
        assert said["encoder"] == answer.headers["x-encoder"]
        return said["encoder"], np.array(said["embeddings"], np.float32)

    def move_champion(self, version: int) -> None:
        with store(tracking_uri()) as client:
            client.set_registered_model_alias(NAME, "champion", str(version))


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Two versions of an encoder in a registry; the champion, version 1, is served."""
    home, port = tmp_path_factory.mktemp("home"), free_port()
    log = home / "serve.log"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VERGENCE_HOME", str(home))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        encoders = register_two(home)
        arguments = ["serve", f"models:/{NAME}@champion", "--port", str(port), "--json", "--follow-s", "0.3"]
        limits = ["--max-bytes", str(MAX_BYTES), "--max-pixels", "10000", "--wait-ms", "10"]
        environment = {"VERGENCE_SERVE_TOKEN": TOKEN, "RAY_metrics_report_interval_ms": "500"}
        process = start(home, *arguments, *limits, log=log, **environment)
        try:
            about = ready(process, log)
            yield Served(process, port, about["metrics"], home, log, encoders)
        finally:
            if process.poll() is None:
                kill_everything(process)


def register_two(home: Path) -> dict[str, LoadedEncoder]:
    uri, encoders = tracking_uri(), {}
    with store(uri) as client:
        experiment = client.create_experiment("tiny", artifact_location=artifacts_of(uri, "tiny"))
    module = make_encoder()
    for version in (1, 2):
        with store(uri) as client:
            run = client.create_run(experiment).info.run_id
        folder = export_encoder(module, make_card(), home / f"run-{version}" / "exports")
        registry.register(folder, NAME, run_id=run, tags={}, tracking_uri=uri)
        encoders[f"models:/{NAME}/{version}"] = load_encoder(str(folder))
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.mul_(1.1)
    return encoders


def ready(process: subprocess.Popen[str], log: Path) -> dict[str, Any]:
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline:
        for line in log.read_text().splitlines():
            if line.startswith('{"url"'):
                said: dict[str, Any] = json.loads(line)
                return said
        assert process.poll() is None, log.read_text()
        time.sleep(0.1)
    raise TimeoutError(log.read_text())


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def encoded(image: np.ndarray, kind: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, kind)
    return file.getvalue()


def test_vectors_are_the_encoders_whatever_carries_the_image(served: Served) -> None:
    name = f"models:/{NAME}/1"
    expected = served.encoders[name](resize(IMAGE, 16)[None])
    for body in (png(IMAGE), npy(IMAGE)):
        who, vectors = served.vectors(body)
        assert who == name
        np.testing.assert_allclose(vectors, expected, atol=1e-5)
    for kind in ("JPEG", "WEBP"):
        decoded = np.asarray(Image.open(io.BytesIO(encoded(IMAGE, kind))).convert("RGB"))
        _, vectors = served.vectors(encoded(IMAGE, kind))
        np.testing.assert_allclose(vectors, served.encoders[name](resize(decoded, 16)[None]), atol=1e-5)
    many = np.random.default_rng(1).integers(0, 256, (7, 16, 16, 3), dtype=np.uint8)
    answer = served.ask(npy(many), accept="application/x-npy")
    assert answer.headers["content-type"] == "application/x-npy"
    np.testing.assert_allclose(np.load(io.BytesIO(answer.body)), served.encoders[name](many), atol=1e-5)


def test_the_pages_client_gets_them_too(served: Served) -> None:
    page = (Path(__file__).resolve().parent.parent.parent / "docs/serve.md").read_text()
    [client] = re.findall("```python\n(.*?)```", page, re.DOTALL)
    cells: dict[str, Any] = {}
    exec(client.replace("127.0.0.1:8000", f"127.0.0.1:{served.port}").replace("TOKEN", TOKEN), cells)
    images = np.random.default_rng(3).integers(0, 256, (5, 16, 16, 3), dtype=np.uint8)
    expected = served.encoders[f"models:/{NAME}/1"](images)
    np.testing.assert_allclose(cells["embed"](images), expected, atol=1e-5)


def test_what_cannot_be_answered_is_refused_with_its_status(served: Served) -> None:
    good = png(IMAGE)
    for token in (None, "Bearer wrong", f"Basic {TOKEN}"):
        assert served.ask(good, token=token).status == 401
        assert served.ask(path="/metadata", method="GET", token=token).status == 401
    assert served.ask(b"\0" * (MAX_BYTES + 1)).status == 413
    assert served.ask(iter([b"\0" * 50_000] * 6)).status == 413  # without a length
    assert served.ask(png(np.zeros((101, 100, 3), np.uint8))).status == 413
    for broken in (good[:-30], b"no image", npy(IMAGE.astype(np.float32)), b""):
        answer = served.ask(broken)
        assert answer.status == 422
        assert json.loads(answer.body)["error"]
    assert served.ask(good, path="/elsewhere").status == 404
    assert served.ask(path="/-/healthz", method="GET", token=None).status == 200
    served.vectors(good)  # and it goes on


def test_metadata_is_the_card_without_places_of_the_machine_that_trained_it(served: Served) -> None:
    said = json.loads(served.ask(path="/metadata", method="GET").body)
    encoder = served.encoders[f"models:/{NAME}/1"]
    assert (said["encoder"], said["digest"]) == (f"models:/{NAME}/1", encoder.digest)
    assert (said["size"], said["dim"]) == (16, 128)
    assert said["card"]["method"] == "simclr"
    assert "recipe" not in said["card"]


def test_32_clients_at_once_get_their_own_vectors(served: Served) -> None:
    images = np.random.default_rng(2).integers(0, 256, (32, 16, 16, 3), dtype=np.uint8)
    expected = served.encoders[f"models:/{NAME}/1"](images)

    def client(i: int) -> None:
        for _ in range(6):
            _, vectors = served.vectors(npy(images[i]))
            np.testing.assert_allclose(vectors[0], expected[i], atol=1e-5)

    with ThreadPoolExecutor(32) as pool:
        list(pool.map(client, range(32)))
    soon(lambda: metric(served, "vergence_serve_batch_images_count") > 0)
    batches, images_seen = (
        metric(served, f"vergence_serve_batch_images_{each}") for each in ("count", "sum")
    )
    assert images_seen / batches > 1.5  # requests were embedded together


def test_prometheus_finds_counts_by_status(served: Served) -> None:
    soon(lambda: metric(served, "vergence_serve_requests_total", status="200") >= 32 * 6)
    soon(lambda: metric(served, "vergence_serve_requests_total", status="401") >= 6)
    assert metric(served, "vergence_serve_requests_total", status="500") == 0
    assert metric(served, "vergence_serve_seconds_count") >= 32 * 6


def test_a_new_champion_takes_over_under_load_without_a_failed_request(served: Served) -> None:
    stop, answers = threading.Event(), Counter[str]()
    image = IMAGE[:16, :16]

    def client() -> None:
        while not stop.is_set():
            who, vectors = served.vectors(png(image))
            np.testing.assert_allclose(vectors, served.encoders[who](image[None]), atol=1e-5)
            answers[who] += 1

    with ThreadPoolExecutor(8) as pool:
        clients = [pool.submit(client) for _ in range(8)]
        try:
            soon(lambda: sum(answers.values()) >= 40)
            served.move_champion(2)
            soon(lambda: answers[f"models:/{NAME}/2"] >= 40)
        finally:
            stop.set()
        for each in clients:
            each.result()
    assert answers[f"models:/{NAME}/1"] >= 40


def test_a_registry_that_is_away_changes_nothing(served: Served) -> None:
    database, away = served.home / "mlflow.db", served.home / "away.db"
    database.rename(away)
    soon(lambda: metric(served, "vergence_serve_follow_failures_total") >= 2)
    who, _ = served.vectors(png(IMAGE))
    away.rename(database)
    served.move_champion(1)
    soon(lambda: served.vectors(png(IMAGE))[0] != who)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nobody"], "nobody: no such run"),
        (["RUN", "--host", "0.0.0.0"], "set VERGENCE_SERVE_TOKEN"),
        (["RUN", "--port", "PORT"], "choose another --host or --port"),
        (["RUN", "--batch", "0"], "--batch 0"),
        (["RUN", "--replicas", "500"], "lower --replicas or --threads"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(
    served: Served, arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {"RUN": str(served.home / "run-1/exports"), "PORT": str(served.port)}
    assert cli.main(["serve", *(places.get(word, word) for word in arguments)]) == 2
    said = capsys.readouterr().err
    assert says in said
    assert len(said.splitlines()) == 1


def test_without_ray_serve_the_pip_line_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "uvicorn" else find(name))
    assert cli.main(["serve", "x"]) == 2
    assert "pip install 'vergence[serve]'" in capsys.readouterr().err


def test_its_door_is_open_to_this_machine_only(served: Served) -> None:
    [haproxy] = running(served, "haproxy")
    listening = [each.laddr for each in haproxy.net_connections() if each.status == psutil.CONN_LISTEN]
    assert served.port in {address.port for address in listening}
    assert {address.ip for address in listening} == {"127.0.0.1"}


def test_a_killed_replica_is_replaced(served: Served) -> None:
    [replica] = running(served, "ServeReplica")
    replica.kill()
    replica.wait()

    def answers() -> bool:
        with contextlib.suppress(OSError, http.client.HTTPException):
            return served.ask(png(IMAGE)).status == 200
        return False

    soon(answers)


# the last one: it ends the server
def test_sigterm_finishes_what_is_in_flight_and_ends_with_0(served: Served) -> None:
    body = npy(np.zeros((256, 16, 16, 3), np.uint8))
    sent = threading.Barrier(17)
    with ThreadPoolExecutor(16) as pool:
        answers = [pool.submit(served.ask, body, sent=sent.wait) for _ in range(16)]
        sent.wait()
        time.sleep(0.3)  # they are in Serve's hands
        os.kill(served.process.pid, signal.SIGTERM)
        assert [answer.result().status for answer in answers] == [200] * 16
    assert served.process.wait(60) == 0, served.log.read_text()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", served.port), timeout=2).close()


def running(served: Served, name: str) -> list[psutil.Process]:
    """The server's processes that have a word like this as their own name."""
    children = psutil.Process(served.process.pid).children(recursive=True)
    return [each for each in children if name in each.cmdline()[0]]


def metric(served: Served, name: str, **labels: str) -> float:
    """The sum of a metric over what it is labelled with otherwise."""
    with urllib.request.urlopen(served.metrics, timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    found = 0.0
    for line in lines:
        if line.startswith(f"ray_{name}{{") and all(
            f'{key}="{value}"' in line for key, value in labels.items()
        ):
            found += float(line.rsplit(" ", 1)[1])
    return found


def soon(holds: Callable[[], bool], within_s: float = 60) -> None:
    deadline = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.1)
