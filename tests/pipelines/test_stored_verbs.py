"""The verbs that read shards take URLs: what they say of objects is what they say of the same files."""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
import pytest
from object_servers import Faults, s3_server
from shard_files import png, write_shard
from tiny_encoder import make_card, make_encoder

from vergence.pipelines import cli, embedded
from vergence.platform.encoders.export import export_encoder
from vergence.platform.store import Store

BUCKET = "s3://verbs"


class Work(NamedTuple):
    folder: Path
    encoder: str
    server: "Server"


class Server(Faults):
    """refuses: whoever asks."""

    refuses = False

    def draw(self, request: str) -> str | None:
        drawn = super().draw(request)
        return "refused" if self.refuses else drawn


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Work]:
    """Images of two classes below train/ and test/, packed into a store."""
    folder, server = tmp_path_factory.mktemp("work"), Server()
    draw = np.random.default_rng(0)
    for name, count in (("train", 40), ("test", 12)):
        for i in range(count):
            file = folder / f"images-{name}/{'ab'[i % 2]}/{i:03d}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(png(draw.integers(0, 256, (16, 16, 3), np.uint8)))
    exports = export_encoder(make_encoder(), make_card(), folder / "run/exports")
    with s3_server("verbs", server) as environment, pytest.MonkeyPatch.context() as patch:
        for name, value in (
            environment | {"VERGENCE_HOME": str(folder / "home"), "TMPDIR": str(folder)}
        ).items():
            patch.setenv(name, value)
        yield Work(folder, str(exports / "encoder.pt2"), server)


def vergence(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> str:
    capsys.readouterr()
    found, told = cli.main(words), capsys.readouterr()
    assert found == code, told.err
    return told.err if code == 2 else told.out


def both(work: Work, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """What a command says, with @ in place of a folder: the same of one of this machine and of one in the store."""
    told = [
        vergence(capsys, *(word.replace("@", where) for word in words)).replace(where, "@")
        for where in (str(work.folder), BUCKET)
    ]
    assert told[0] == told[1]
    return told[1]


@pytest.fixture(scope="module")
def packed(work: Work) -> Work:
    for where in (str(work.folder), BUCKET):
        for name in ("train", "test"):
            images = f"{work.folder}/images-{name}"
            assert (
                cli.main(["shards", "pack", images, f"{where}/set/", "--per-shard", "15", "--name", name])
                == 0
            )
    return work


def test_packed_indexed_and_checked(packed: Work, capsys: pytest.CaptureFixture[str]) -> None:
    images = f"{packed.folder}/images-train"
    told = both(packed, capsys, "shards", "pack", images, "@/set/", "--per-shard", "15")
    assert told == "@/set/train-{000000..000002}.tar: exists already, nothing to do: 40 samples, 2 classes\n"
    found = [
        json.loads(vergence(capsys, "shards", "index", f"{where}/set/train-*.tar", "--json"))
        for where in (packed.folder, BUCKET)
    ]
    assert {key for key, value in found[0].items() if found[1][key] != value} == {"index"}
    assert (
        both(packed, capsys, "shards", "check", "@/set") == "@/set: 52 samples in 4 shards: all can be read\n"
    )
    half = (packed.folder / "images-test/a/000.png").read_bytes()[:400]
    broken = write_shard(packed.folder / "broken/a.tar", [("cut", {"png": half})])
    Store(BUCKET).put(f"{BUCKET}/broken/a.tar", broken)
    told = vergence(capsys, "shards", "check", f"{BUCKET}/broken", code=1)
    assert told.startswith(f"{BUCKET}/broken/a.tar  cut  ")


def test_drawn_embedded_and_evaluated(packed: Work, capsys: pytest.CaptureFixture[str]) -> None:
    folder = packed.folder
    for where in (str(folder), BUCKET):
        name = f"{folder}/{where[:2].strip('/')}"
        vergence(
            capsys, "shards", "preview", f"{where}/set", "--recipe", "simclr-cifar10", "--out", f"{name}.png"
        )
        vergence(capsys, "embed", packed.encoder, f"{where}/set/train-*.tar", name)
        words = ("--train", f"{where}/set/train-*.tar", "--test", f"{where}/set/test-000000.tar")
        vergence(capsys, "evaluate", packed.encoder, *words, "--json", f"{name}.json")
    local, stored = (folder / str(folder)[:2].strip("/"), folder / BUCKET[:2])
    assert stored.with_suffix(".png").read_bytes() == local.with_suffix(".png").read_bytes()
    assert [file.name for file in sorted(stored.glob("*.parquet"))] == [
        f"train-{i:06d}.parquet" for i in range(3)
    ]
    for file in stored.glob("*.parquet"):
        assert pq.read_table(file).equals(pq.read_table(local / file.name))
    scores: list[Any] = [
        json.loads(each.with_suffix(".json").read_text())["results"] for each in (local, stored)
    ]
    assert scores[0] == scores[1]


def test_vectors_are_written_into_a_store(
    packed: Work, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    local, store = packed.folder / "vectors", Store(BUCKET)
    vergence(capsys, "embed", packed.encoder, f"{packed.folder}/set/train-*.tar", str(local))
    words = ("embed", packed.encoder, f"{BUCKET}/set/train-*.tar")
    vergence(capsys, *words, f"{BUCKET}/vectors/")
    names = sorted(file.name for file in local.iterdir())
    assert [each.url for each in store.list(f"{BUCKET}/vectors")] == [
        f"{BUCKET}/vectors/{name}" for name in names
    ]
    for name in names:
        assert store.get(f"{BUCKET}/vectors/{name}")[0] == (local / name).read_bytes()
    store.delete(f"{BUCKET}/vectors/train-000001.parquet")
    there = store.list(f"{BUCKET}/vectors")[1:]
    monkeypatch.setattr(embedded, "FOOTER", 16)  # what a file says of itself is longer
    assert "written: 40 embeddings" in vergence(capsys, *words, f"{BUCKET}/vectors")
    assert set(store.list(f"{BUCKET}/vectors")) > set(there)
    assert "exists already, nothing to do: 40" in vergence(capsys, *words, f"{BUCKET}/vectors")
    for _ in range(2):
        vergence(capsys, *words, f"{BUCKET}/deep/all.parquet")
    table = pq.read_table(io.BytesIO(store.get(f"{BUCKET}/deep/all.parquet")[0]))
    assert table.num_rows == 40
    other = vergence(capsys, "embed", packed.encoder, f"{BUCKET}/set/test-*.tar", f"{BUCKET}/vectors", code=2)
    assert f"{BUCKET}/vectors/train-000000.parquet: exists and is of" in other
    assert "a web server takes no files" in vergence(capsys, *words, "http://127.0.0.1:1/x", code=2)


@pytest.mark.parametrize(
    ("refuses", "url", "message"),
    [
        (True, f"{BUCKET}/set", "verbs/set: the store refuses"),
        (False, "s3://none/set", "s3://none/set: there is no such bucket; make it, or mend its name"),
        (False, f"{BUCKET}/nothing", "verbs/nothing: matches no shard"),
        (False, "hdfs://a/b", "no store is reached by hdfs://"),
    ],
)
def test_what_cannot_be_read_ends_a_run_before_it_starts(
    packed: Work, capsys: pytest.CaptureFixture[str], refuses: bool, url: str, message: str
) -> None:
    packed.server.refuses = refuses
    try:
        told = vergence(capsys, "pretrain", "simclr-cifar10", f"data.train={url}", "--name", "never", code=2)
    finally:
        packed.server.refuses = False
    assert message in told
    assert told.count("\n") == 1
    assert not refuses or "set AWS_ACCESS_KEY_ID" in told
    assert not list((packed.folder / "home/never").glob("[!.]*"))
