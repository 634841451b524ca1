"""Features: right whatever is kept, kept whatever is interrupted, and nothing stale."""

import contextlib
import io
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from shard_files import write_shard
from tiny_encoder import MEAN, STD, make_encoder

from vergence.platform.data.index import Index, open_index
from vergence.platform.data.progress import Bar
from vergence.platform.data.read import Reader
from vergence.platform.encoders.encoder import ModuleEncoder
from vergence.platform.evaluate import feature_cache
from vergence.platform.evaluate import features as module
from vergence.platform.evaluate.features import features

NUM, BAD = 23, 6
IMAGES = np.random.default_rng(0).integers(0, 256, (NUM, 16, 16, 3), dtype=np.uint8)


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PART", 5)


@pytest.fixture
def index(tmp_path: Path) -> Index:
    return write(tmp_path, IMAGES)


def bmp(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "BMP")
    return file.getvalue()


def write(folder: Path, images: np.ndarray) -> Index:
    """As BMP: other pixels have the same number of bytes."""
    samples = [(f"{i:02d}", {"bmp": b"" if i == BAD else bmp(image)}) for i, image in enumerate(images)]
    return open_index(write_shard(folder / "a.tar", samples), folder / "index")


class Counting:
    """The encoder, and how many images it has seen; can be interrupted after some."""

    def __init__(self, encoder: Any = None, least: int = 10**9) -> None:
        self.encoder, self.seen, self.least = encoder or ENCODER, 0, least

    def __getattr__(self, name: str) -> Any:
        return getattr(self.encoder, name)

    def to(self, device: object) -> "Counting":
        return self

    def __call__(self, images: np.ndarray) -> np.ndarray:
        if self.seen + len(images) > self.least:
            raise KeyboardInterrupt
        self.seen += len(images)
        return self.encoder(images)


ENCODER = ModuleEncoder.of(make_encoder(), "tiny", size=16, mean=MEAN, std=STD)
GOOD = np.array([i for i in range(NUM) if i != BAD])


def test_features_are_the_encoders_vectors_of_what_can_be_read(index: Index) -> None:
    [(ids, rows)] = features([ENCODER], index, threads=2)
    assert ids.tolist() == GOOD.tolist()
    assert rows.dtype == np.float32
    np.testing.assert_allclose(rows, ENCODER(IMAGES[GOOD]), atol=1e-5)
    [(ids, rows)] = features([ENCODER], index, np.array([20, 6, 3]), threads=1)
    assert ids.tolist() == [20, 3]
    np.testing.assert_allclose(rows, ENCODER(IMAGES[[20, 3]]), atol=1e-5)
    [none] = features([ENCODER], index, np.array([BAD]), threads=1)
    assert none.rows.shape == (0, 128)


def test_what_is_kept_is_not_embedded_again_and_is_the_same_to_the_bit(index: Index, tmp_path: Path) -> None:
    cache = tmp_path / "features"
    [plain] = features([ENCODER], index, threads=1)
    for seen in (NUM - 1, 0):
        encoder = Counting()
        [(ids, rows)] = features([encoder], index, threads=1, cache=cache)
        assert encoder.seen == seen
        assert (ids == plain.ids).all()
        assert (rows == plain.rows).all()


def test_an_interrupted_call_goes_on_with_the_part_it_was_in(index: Index, tmp_path: Path) -> None:
    cache = tmp_path / "features"
    with pytest.raises(KeyboardInterrupt):
        features([Counting(least=12)], index, threads=1, cache=cache)
    encoder = Counting()
    features([encoder], index, threads=1, cache=cache)
    assert encoder.seen == NUM - 1 - 9  # two parts of five, one of them with the bad one


def test_a_damaged_part_is_made_again(index: Index, tmp_path: Path) -> None:
    cache = tmp_path / "features"
    [expected] = features([ENCODER], index, threads=1, cache=cache)
    first, second, *_ = sorted(cache.glob("*/*.npz"))
    first.write_bytes(first.read_bytes()[:-40])
    second.write_bytes(b"")
    encoder = Counting()
    assert (features([encoder], index, threads=1, cache=cache)[0].rows == expected.rows).all()
    assert encoder.seen == 5 + 4


def test_other_weights_other_data_and_other_samples_have_a_place_of_their_own(
    index: Index, tmp_path: Path
) -> None:
    cache = tmp_path / "features"
    features([ENCODER], index, threads=1, cache=cache)
    other = make_encoder()
    other.backbone.conv1.weight.data[0] += 1
    for encoder, ids in (
        (ModuleEncoder.of(other, "tiny", size=16, mean=MEAN, std=STD), None),
        (ENCODER, np.arange(NUM - 1)),
    ):
        counting = Counting(encoder)
        [(_, rows)] = features([counting], index, ids, threads=1, cache=cache)
        assert counting.seen == len(rows)
    changed = write(tmp_path, 255 - IMAGES)
    assert changed.digest == index.digest
    np.testing.assert_allclose(
        features([ENCODER], changed, threads=1, cache=cache)[0].rows, ENCODER(255 - IMAGES[GOOD]), atol=1e-5
    )


def test_several_encoders_share_one_reading_whatever_is_kept_of_each(
    index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    images = Reader.images

    def noting(self: Reader, ids: np.ndarray) -> list[Any]:
        read.extend(ids.tolist())
        return images(self, ids)

    monkeypatch.setattr(Reader, "images", noting)
    cache = tmp_path / "features"
    features([ENCODER], index, threads=1, cache=cache)
    other = make_encoder()
    other.backbone.conv1.weight.data[0] += 1
    both = Counting(), Counting(ModuleEncoder.of(other, "other", size=16, mean=MEAN, std=STD))
    read.clear()
    one, two = features(both, index, threads=1, cache=cache)
    assert sorted(read) == list(range(NUM))
    assert [each.seen for each in both] == [0, NUM - 1]
    assert (one.ids == two.ids).all()
    np.testing.assert_allclose(two.rows, both[1].encoder(IMAGES[GOOD]), atol=1e-5)


class Nameless(Counting):
    digest = ""


def test_what_has_no_digest_is_not_kept(index: Index, tmp_path: Path) -> None:
    features([Nameless()], index, threads=1, cache=tmp_path / "features")
    assert not (tmp_path / "features").exists()


def test_a_cache_that_cannot_be_written_stops_nothing(
    index: Index, small_disk: Callable[[Path], Path], tmp_path: Path
) -> None:
    cache = small_disk(tmp_path / "disk")
    with contextlib.suppress(OSError), (cache / "full").open("wb", buffering=0) as file:
        while True:
            file.write(b"\0" * 4096)
    assert len(features([ENCODER], index, threads=1, cache=cache)[0].rows) == NUM - 1


def test_features_that_nobody_has_used_for_a_month_go(index: Index, tmp_path: Path) -> None:
    cache = tmp_path / "features"
    features([ENCODER], index, threads=1, cache=cache)
    (old,) = cache.glob("*/")
    features([ENCODER], index, np.arange(3), threads=1, cache=cache)
    assert old.exists()
    (cache / "of somebody else").mkdir()
    long_ago = time.time() - feature_cache.UNUSED_S - 60
    for folder in (old, cache / "of somebody else"):
        os.utime(folder, (long_ago, long_ago))
    features([ENCODER], index, np.arange(4), threads=1, cache=cache)
    assert not old.exists()
    assert (cache / "of somebody else").exists()
    assert len([*cache.glob("*/*.json")]) == 2


def test_reads_with_as_many_threads_as_it_is_given(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: set[int] = set()
    images = Reader.images

    def noting(self: Reader, ids: np.ndarray) -> list[Any]:
        seen.add(threading.get_ident())
        return images(self, ids)

    monkeypatch.setattr(Reader, "images", noting)
    features([ENCODER], index, np.arange(4), threads=1)
    assert len(seen) == 1


def test_a_bar_is_drawn_for_whoever_waits(
    index: Index, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "Bar", lambda what, total, enabled: Slow(what, total, enabled=enabled))
    features([ENCODER], index, threads=1, progress="embedding a.tar")
    assert f"embedding a.tar: {NUM} of {NUM}" in capfd.readouterr().err
    features([ENCODER], index, threads=1)
    assert capfd.readouterr().err == ""


class Slow(Bar):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, after_s=-1.0, **kwargs)


def test_a_module_keeps_its_mode_and_its_weights(index: Index) -> None:
    encoder = make_encoder().train()
    before = {key: tensor.clone() for key, tensor in encoder.state_dict().items()}
    features([ModuleEncoder.of(encoder, "x", size=16, mean=MEAN, std=STD)], index, threads=1)
    assert encoder.training
    assert all(torch.equal(tensor, before[key]) for key, tensor in encoder.state_dict().items())
