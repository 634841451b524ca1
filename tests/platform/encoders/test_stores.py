"""The registry's whole road on each kind of store: a real server with SQLite, with PostgreSQL and S3, behind passwords."""

import json
import os
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import mlflow
import mlflow_stores
import numpy as np
import pytest
from tiny_encoder import make_card, make_encoder

from vergence.platform.encoders.export import export_encoder
from vergence.platform.encoders.load import load_encoder
from vergence.platform.encoders.registry import register
from vergence.platform.encoders.versions import (
    Aliases,
    aliases_of,
    decide,
    go_back,
    make_champion,
    record,
    registry,
)
from vergence.platform.errors import VergenceError
from vergence.platform.evaluate.report import Data, EncoderFacts, Figure, Report, SetFacts, read_report
from vergence.platform.mlflow_store import store, tracking_uri

IMAGES = np.random.default_rng(0).integers(0, 256, (64, 16, 16, 3), dtype=np.uint8)
REPORT = Report(
    encoder=EncoderFacts(name="tiny", digest="d" * 16, dim=128, size=16),
    data=Data(
        bank=SetFacts(shards="train.tar", digest="a" * 64, images=9, unreadable=0, unlabelled=0),
        test=SetFacts(shards="test.tar", digest="b" * 64, images=5, unreadable=0, unlabelled=0),
        input="16 x 16",
        classes="compared by name",
    ),
    protocols={"knn-v1": {"k": 20}},
    results={"encoder": {"knn-v1": Figure(top1=0.5)}},
)


def registered(folder: Path, name: str, count: int) -> Path:
    """Versions 1 to `count` of a model in the current store; the export that all of them hold."""
    exports = export_encoder(make_encoder(), make_card(), folder / "exports")
    with store(tracking_uri()) as client:
        experiment = client.create_experiment(name)
        runs = [client.create_run(experiment).info.run_id for _ in range(count)]
    for i, run_id in enumerate(runs):
        tags = {"method": "simclr"}
        assert register(exports, name, run_id=run_id, tags=tags, tracking_uri=tracking_uri()) == i + 1
    return exports


def whole_road(folder: Path, name: str) -> None:
    """Register, load, evaluate, promote, go back."""
    ours = load_encoder(str(registered(folder, name, 2)))
    with registry("test") as client:
        assert aliases_of(client, name, "test") == Aliases(candidate=2, champion=1, previous=None)
        record(client, name, 2, REPORT)
        decide(client, name, 2, "promoted", "it is better")
        make_champion(client, name, aliases_of(client, name, "test"))
        assert aliases_of(client, name, "test") == Aliases(candidate=None, champion=2, previous=1)
        version = client.get_model_version_by_alias(name, "champion")
        assert version.tags["method"] == "simclr"
        assert version.tags["decision"] == "promoted"
        model = client.get_logged_model(version.source.split("/")[1])
        assert {each.key: each.value for each in model.metrics} == {"knn": 0.5, "knn-v1": 0.5}
        files = Path(mlflow.artifacts.download_artifacts(f"models:/{name}@champion", dst_path=str(folder)))
    assert read_report(files / "evaluations" / f"knn-v1-{'b' * 12}.json") == REPORT
    encoder = load_encoder(f"models:/{name}@champion")
    assert (encoder.name, encoder.digest) == (f"models:/{name}/2", ours.digest)
    np.testing.assert_allclose(encoder(IMAGES), ours(IMAGES), atol=1e-5)
    with registry("test") as client:
        go_back(client, name, aliases_of(client, name, "test"))
    assert load_encoder(f"models:/{name}@champion").name == f"models:/{name}/1"


def test_a_server_with_sqlite(mlflow_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server)
    whole_road(tmp_path, "on-a-server")


@pytest.mark.slow
@pytest.mark.skipif(
    shutil.which("initdb") is None, reason="PostgreSQL (initdb, postgres) is not on this machine"
)
def test_a_server_with_postgresql_and_s3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clients know neither the database nor the keys of the files: they ask the server."""
    with (
        mlflow_stores.postgres() as database,
        mlflow_stores.s3(tmp_path, "encoders") as environment,
        mlflow_stores.mlflow_server(
            tmp_path, 0, database=database, artifacts="s3://encoders/mlflow", **environment
        ) as address,
    ):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        whole_road(tmp_path, "on-postgresql")


@pytest.fixture(scope="module")
def auth_packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what mlflow[auth] adds."""
    folder = tmp_path_factory.mktemp("auth")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder)]
    subprocess.run([*pip, "Flask-WTF<2", "WTForms"], check=True)
    return folder


@pytest.mark.slow
def test_a_server_behind_passwords(
    auth_packages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = {
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "of the test",
        "MLFLOW_AUTH_ADMIN_PASSWORD": "a-long-password",
        "PYTHONPATH": os.pathsep.join([str(auth_packages), os.environ.get("PYTHONPATH", "")]),
    }
    arguments = ["--app-name", "basic-auth"]
    with mlflow_stores.mlflow_server(tmp_path, 0, arguments=arguments, **secret) as address:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "a-long-password")
        whole_road(tmp_path, "behind-passwords")
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "another")
        with pytest.raises(VergenceError, match="check MLFLOW_TRACKING_USERNAME") as caught:
            load_encoder("models:/behind-passwords@champion")
        assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_mlflow_models_serve(mlflow_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server)
    ours = load_encoder(str(registered(tmp_path, "served", 1)))
    port = mlflow_stores.free_port()
    command = [
        *(sys.executable, "-m", "mlflow", "models", "serve", "-m", "models:/served@champion"),
        *("--env-manager", "local", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"),
    ]
    path = os.pathsep.join(
        [str(Path(sys.executable).parent), os.environ["PATH"]]
    )  # it looks for uvicorn there
    environment = os.environ | {"PATH": path, "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"}
    address = f"http://127.0.0.1:{port}"
    with mlflow_stores.started(
        command, tmp_path / "serve.log", f"{address}/ping", env=environment, cwd=tmp_path
    ):
        for n in (1, 7, 64):
            np.testing.assert_allclose(invoked(address, IMAGES[:n].tolist()), ours(IMAGES[:n]), atol=1e-5)


def invoked(address: str, images: list[Any]) -> Any:
    body = json.dumps({"inputs": images}).encode()
    request = urllib.request.Request(f"{address}/invocations", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return np.array(json.load(answer)["predictions"], np.float32)
