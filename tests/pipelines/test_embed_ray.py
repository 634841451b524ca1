"""`vergence embed --workers`: actors that die, a driver that is interrupted, and who reads what was written."""

import contextlib
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pytest
import ray
import torch
from shard_files import png, write_shard
from tiny_encoder import make_card, make_encoder

from vergence.pipelines import cli
from vergence.pipelines.embed import embed
from vergence.platform.cluster import embed as on_ray
from vergence.platform.encoders.encoder import Images, LoadedEncoder, Rows
from vergence.platform.encoders.export import export_encoder
from vergence.platform.encoders.load import load_encoder

DOCS = Path(__file__).resolve().parent.parent.parent / "docs"
NUM_IMAGES, BLOCK = 120, 10  # 3 shards of 4 blocks


@pytest.fixture(scope="module", autouse=True)
def session() -> Iterator[None]:
    """One session for all, which is the caller's: the commands join it."""
    before = dict(os.environ)
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # no worker can import this file
    os.environ |= {"RAY_worker_niceness": "0", "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    ray.init(
        address="local",
        num_cpus=4,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=300 << 20,
    )
    yield
    ray.shutdown()
    ray.cloudpickle.unregister_pickle_by_value(sys.modules[__name__])
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> LoadedEncoder:
    folder = export_encoder(make_encoder(), make_card(), tmp_path_factory.mktemp("run") / "exports")
    return load_encoder(str(folder / "encoder.pt2"))


@pytest.fixture
def shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VERGENCE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(on_ray, "BLOCK_ROWS", BLOCK)
    generator = np.random.default_rng(0)
    for shard in range(3):
        samples = [
            (f"{i:03d}", {"png": png(generator.integers(0, 256, (16, 16, 3), dtype=np.uint8))})
            for i in range(shard * 40, shard * 40 + 40)
        ]
        if shard == 1:
            samples[5] = (samples[5][0], {"png": b"broken"})
        write_shard(tmp_path / "shards" / f"train-{shard}.tar", samples)
    return tmp_path / "shards"


@dataclass(frozen=True)
class Watched:
    """An encoder that notes each of its calls in `log`; after the second one, one ends its process, as the kernel would."""

    encoder: LoadedEncoder
    log: Path
    kills: bool = False
    pause_s: float = 0.0

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.encoder, name)

    def to(self, device: torch.device) -> "Watched":
        return self

    def __call__(self, images: Images) -> Rows:
        with self.log.open("a") as file:
            file.write(f"{os.getpid()} {len(images)}\n")
        if self.kills and len(self.calls()) > 2:
            with contextlib.suppress(FileExistsError):
                self.log.with_suffix(".killed").touch(exist_ok=False)
                time.sleep(0.5)  # what this process has answered before is with its owner
                os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(self.pause_s)
        return self.encoder(images)

    def calls(self) -> list[str]:
        return self.log.read_text().splitlines()


def test_an_actor_that_dies_costs_its_block_and_every_key_is_there_once(
    encoder: LoadedEncoder, shards: Path, tmp_path: Path
) -> None:
    watched = Watched(encoder, tmp_path / "log", kills=True)
    written = embed(watched, str(shards), tmp_path / "out", workers=2)  # type: ignore[arg-type]
    assert (written.rows, written.bad, written.existed) == (NUM_IMAGES - 1, ["train-1.tar:045"], False)
    calls = watched.calls()
    assert len(calls) == 12 + 1  # one block twice
    assert len({call.split()[0] for call in calls}) >= 2  # the dead actor's block was done by another process
    embed(encoder, str(shards), tmp_path / "here")
    table, expected = (
        pd.read_parquet(tmp_path / folder, columns=["key", "embedding"]).sort_values("key")
        for folder in ("out", "here")
    )
    assert table["key"].tolist() == [f"{i:03d}" for i in range(NUM_IMAGES) if i != 45]
    np.testing.assert_allclose(np.stack(table["embedding"]), np.stack(expected["embedding"]), atol=1e-5)
    rows = duckdb.sql(
        f"select count(*), count(distinct key), min(len(embedding)) from '{tmp_path}/out/*.parquet'"
    ).fetchall()
    assert rows == [(NUM_IMAGES - 1, NUM_IMAGES - 1, encoder.dim)]


def test_an_interruption_and_a_rerun_give_every_key_once(
    encoder: LoadedEncoder, shards: Path, tmp_path: Path
) -> None:
    out, slow = tmp_path / "out", Watched(encoder, tmp_path / "log", pause_s=0.3)

    def interrupt() -> None:
        """Ctrl-C, once the first file is there."""
        while not (out / "train-0.parquet").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        embed(slow, str(shards), out, workers=1)  # type: ignore[arg-type]
    assert not (out / "_MANIFEST.json").exists()
    assert not list(out.glob(".*"))
    done = {file.name: file.stat().st_mtime_ns for file in out.glob("*.parquet")}
    assert 1 <= len(done) < 3
    arguments = ["embed", encoder.name, str(shards), str(out), "--workers", "2", "--json"]
    assert cli.main(arguments) == 0
    assert {name: (out / name).stat().st_mtime_ns for name in done} == done
    table = pd.read_parquet(out)
    assert sorted(table["key"]) == [f"{i:03d}" for i in range(NUM_IMAGES) if i != 45]


def test_ctrl_c_that_a_callback_of_rays_has_swallowed_ends_with_the_next_block(
    encoder: LoadedEncoder, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def blocks(*_: object, **__: object) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for number in range(100):
            with contextlib.suppress(KeyboardInterrupt):  # as Ray's callbacks do
                os.kill(os.getpid(), signal.SIGINT)
            done.append(number)
            yield np.empty(0, np.int64), np.empty((0, encoder.dim), np.float32)

    done, before = list[int](), signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(on_ray, "embedded", blocks)
    with pytest.raises(KeyboardInterrupt):
        embed(encoder, str(shards), tmp_path / "out", workers=1)
    assert done == [0]
    assert signal.getsignal(signal.SIGINT) is before


def test_duckdb_and_pandas_read_the_folder_as_the_page_says(
    encoder: LoadedEncoder, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embed(encoder, str(shards), tmp_path / "embeddings", workers=2)
    monkeypatch.chdir(tmp_path)
    by_duckdb, by_pandas = re.findall("```python\n(.*?)```", (DOCS / "embed.md").read_text(), re.DOTALL)
    cells: dict[str, Any] = {}
    exec(by_duckdb, cells)
    exec(by_pandas, cells)
    vectors, keys = cells["vectors"], cells["table"]["key"].tolist()
    assert (vectors.shape, vectors.dtype) == ((NUM_IMAGES - 1, encoder.dim), np.float32)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    similarity = unit @ unit[keys.index("017")]
    assert keys[int(np.argsort(-similarity)[1])] == cells["nearest"].fetchall()[0][0]


def test_the_callers_session_is_left_as_it_was_found(
    encoder: LoadedEncoder, shards: Path, tmp_path: Path
) -> None:
    embed(encoder, str(shards), tmp_path / "out.parquet", workers=1)
    assert ray.is_initialized()
    deadline = time.monotonic() + 20
    while ray.available_resources().get("CPU") != 4 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert ray.available_resources()["CPU"] == 4


def test_more_workers_than_the_session_has_cpus_are_refused_in_one_line(
    encoder: LoadedEncoder, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["embed", encoder.name, str(shards), str(tmp_path / "out")]
    assert cli.main([*arguments, "--workers", "64"]) == 2
    assert "lower --workers" in capsys.readouterr().err
    assert cli.main([*arguments, "--workers", "0"]) == 2
    assert cli.main([*arguments, "--workers", "1", "--device", "cuda:0"]) == 2
