"""The stream through Ray Data: the planned samples, in order, whatever the workers, after any resume."""

import io
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import ray
from object_servers import Faults, web_server
from PIL import Image
from shard_files import wav, write_shard

from vergence.platform.augment.crop import cut
from vergence.platform.augment.presets import ViewSpec
from vergence.platform.cluster.feed import Feed
from vergence.platform.data.config import DataConfig
from vergence.platform.data.index import open_index
from vergence.platform.data.order import Order
from vergence.platform.data.plan import Plan
from vergence.platform.data.remote import Access
from vergence.platform.data.share import Share
from vergence.platform.data.stream import Stream

NUM, BATCH, EPOCHS, BROKEN = 83, 12, 2, (4, 30)
WHOLE = (ViewSpec(size=8, crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0), flip=0.0),)


def write(path: Path, sides: Sequence[int]) -> None:
    """A shard of one-coloured pictures: sample i has red value i; two of them are broken."""
    with tarfile.open(path, "w") as tar:
        for i in range(NUM):
            file = io.BytesIO()
            side = sides[i % len(sides)]
            Image.new("RGB", (side, side), (i, 0, 0)).save(file, "PNG")
            data = file.getvalue()[:40] if i in BROKEN else file.getvalue()
            info = tarfile.TarInfo(f"{i:03d}.png")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


@pytest.fixture(scope="module")
def ray_session() -> Iterator[None]:
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=100 << 20,
    )
    ray.data.DataContext.get_current().enable_progress_bars = False
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def stream(tmp_path_factory: pytest.TempPathFactory) -> Stream:
    return make_stream(tmp_path_factory.mktemp("stream"), sides=(8,))


def make_stream(folder: Path, sides: Sequence[int], views: tuple[ViewSpec, ...] = WHOLE) -> Stream:
    write(folder / "train-000000.tar", sides)
    index = open_index(folder / "train-000000.tar", folder / "index")
    return Stream(index.path, Plan(len(index), 0.1, 7, BATCH), EPOCHS, views, (), 1 << 20, 192, 192)


def batches(stream: Stream, rank: int, world_size: int, start_step: int) -> list[Share]:
    data = DataConfig(train="", readers=1, reader_cpus=1.0)
    return list(Feed(stream, data, rank, world_size, start_step))


@pytest.fixture(scope="module", params=["files, full order", "a store, order by chunks"])
def streamed(
    request: pytest.FixtureRequest, stream: Stream, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stream]:
    """Where the ids are asked for by Ray's tasks."""
    if request.param.startswith("files"):
        yield stream
        return
    folder, faults = tmp_path_factory.mktemp("store"), Faults()
    write(folder / "train-000000.tar", sides=(8,))
    with web_server(folder, faults) as address:
        faults.errors = 0.05
        index = open_index(f"{address}/train-000000.tar", folder / "index")
        plan = replace(stream.plan, order=Order(kind="chunk", chunk=4, window=5))
        yield replace(stream, index=index.path, plan=plan, access=Access(chunk=4, folder=folder / "node"))
        assert faults.requests


def global_ids(stream: Stream, world_size: int, start_step: int = 0) -> np.ndarray:
    """(steps, BATCH) ids of every global batch, from all ranks."""
    ranks = [batches(stream, rank, world_size, start_step) for rank in range(world_size)]
    return np.array([np.concatenate([batch.ids for batch in step]) for step in zip(*ranks)])


def test_ids_are_the_same_for_1_2_and_3_workers_and_after_a_resume(
    ray_session: None, streamed: Stream
) -> None:
    stream = streamed
    one = global_ids(stream, 1)
    steps = EPOCHS * stream.plan.batches_per_epoch
    assert one.shape == (steps, BATCH)
    planned = np.array([stream.plan.batch_ids(step) for step in range(steps)])
    assert ((one == planned) | np.isin(planned, BROKEN)).all()
    for world_size in (2, 3):
        np.testing.assert_array_equal(global_ids(stream, world_size), one)
    middle = stream.plan.batches_per_epoch + 2
    np.testing.assert_array_equal(global_ids(stream, 2, start_step=middle), one[middle:])


def test_no_planned_id_comes_twice_in_an_epoch(ray_session: None, streamed: Stream) -> None:
    per_epoch = streamed.plan.batches_per_epoch
    rows = batches(streamed, 0, 1, 0)
    for epoch in range(EPOCHS):
        steps = rows[epoch * per_epoch : (epoch + 1) * per_epoch]
        good = np.concatenate([batch.ids[~batch.bad] for batch in steps])
        assert len(set(good)) == len(good)


def test_rows_carry_pixels_position_and_badness(ray_session: None, stream: Stream) -> None:
    for world_size in (1, 2):
        for rank in range(world_size):
            for step, batch in enumerate(batches(stream, rank, world_size, 0)):
                share = BATCH // world_size
                pixels = batch.pictures.pixels.padded().reshape(share, 3, 8, 8)
                np.testing.assert_array_equal(pixels[:, 0, 3, 3], batch.ids)
                assert (pixels.dtype, pixels[:, 1:].max()) == (np.uint8, 0)
                assert batch.positions.tolist() == [step * BATCH + rank * share + i for i in range(share)]
                planned = stream.plan.rank_ids(step, rank, world_size)
                np.testing.assert_array_equal(batch.bad, np.isin(planned, BROKEN))


def test_a_broken_sample_has_the_same_stand_in_everywhere(stream: Stream) -> None:
    order = stream.plan.epoch(0)
    position = int(np.flatnonzero(order == BROKEN[0])[0])
    stand_in, sample = stream.replacement(0, position)
    assert stand_in not in BROKEN
    assert sample.picture[0, 0, 0] == stand_in
    tail = order[stream.plan.batches_per_epoch * BATCH :]
    assert stand_in in tail
    assert stream.replacement(0, position)[0] == stand_in


@pytest.mark.parametrize("start_step", [0, 5, 2**32 + 4])
def test_rows_are_the_planned_ones_however_far_the_run_is(stream: Stream, start_step: int) -> None:
    plan, share = stream.plan, BATCH // 2
    rows = Share.of(stream.table(np.arange(40 * share), 1, 2, start_step))
    steps = range(start_step, start_step + 40)
    assert rows.bad.sum() > 3
    places = [step * BATCH + share + place for step in steps for place in range(share)]
    assert rows.positions.tolist() == places
    for row, place in enumerate(places):
        epoch, position = divmod(place, plan.batches_per_epoch * BATCH)
        planned = int(plan.epoch(epoch)[position])
        good = (i for i in (planned, *plan.candidates(epoch, position)) if i not in BROKEN)
        assert rows.ids[row] == next(good)
        assert rows.bad[row] == (planned in BROKEN)
        assert rows.pictures.pixels[row : row + 1].flat[0] == rows.ids[row]
    assert rows.ids.dtype == rows.positions.dtype == np.int64


def test_pictures_of_unequal_size_arrive_as_what_their_views_need(ray_session: None, tmp_path: Path) -> None:
    views = (ViewSpec(count=2, size=8), ViewSpec(size=4))
    stream = make_stream(tmp_path, sides=(8, 11, 5), views=views)
    for rank in range(2):
        for step, batch in enumerate(batches(stream, rank, 2, 0)):
            here = stream.share(step, rank, 2)
            assert batch.pictures.sizes.tolist() == [[(8, 11, 5)[i % 3]] * 2 for i in batch.ids]
            assert (batch.pictures.pixels.flat == here.pictures.pixels.flat).all()
            assert (batch.pictures.pixels.lengths == here.pictures.pixels.lengths).all()
            assert (batch.pictures.geometry == here.pictures.geometry).all()


@pytest.mark.parametrize("start_step", [0, 5])
def test_crops_are_those_of_sample_epoch_and_seed(tmp_path: Path, start_step: int) -> None:
    views = (ViewSpec(count=2, size=8),)
    stream = make_stream(tmp_path, sides=(11,), views=views)
    plan = stream.plan
    rows = Share.of(stream.table(np.arange(40), 0, 1, start_step))
    for row, place in enumerate(start_step * BATCH + np.arange(40)):
        picture = np.full((11, 11, 3), [rows.ids[row], 0, 0], np.uint8)
        alone = cut(
            [picture], rows.ids[[row]], int(place // (plan.batches_per_epoch * BATCH)), views, plan.seed
        )
        assert (rows.pictures.geometry[row] == alone.geometry[0]).all()
        assert (rows.pictures.pixels[row : row + 1].flat == alone.pixels.flat).all()


def test_fields_travel_beside_the_pictures_and_damaged_ones_have_a_stand_in(
    ray_session: None, tmp_path: Path
) -> None:
    def members(i: int) -> dict[str, bytes]:
        text = b"\xff" if i in BROKEN else f"number {i}".encode() * (i % 3)
        array = io.BytesIO()
        np.save(array, np.full((2, 3), i, np.float32))
        picture = io.BytesIO()
        Image.new("RGB", (8, 8), (i, 0, 0)).save(picture, "PNG")
        cls = {} if i == 7 else {"cls": str(i % 10).encode()}
        rest = {"png": picture.getvalue(), "txt": text, "npy": array.getvalue()}
        return rest | cls | {"wav": wav(np.full((i + 1, 1), 8192, np.int16))}

    shard = write_shard(tmp_path / "a.tar", ((f"{i:03d}", members(i)) for i in range(NUM)))
    index = open_index(shard, tmp_path / "index")
    names = ("label", "text", "array", "audio")
    stream = Stream(index.path, Plan(NUM, 0.0, 3, BATCH), 1, WHOLE, names, 1 << 20).measured()
    seen = []
    for rank in range(2):
        for step, batch in enumerate(batches(stream, rank, 2, 0)):
            ids, fields = batch.ids, batch.fields
            planned = stream.plan.rank_ids(step, rank, 2)
            assert (batch.bad == np.isin(planned, BROKEN)).all()
            assert fields["label"].tolist() == [-1 if i == 7 else i % 10 for i in ids]
            texts = [bytes(row[:n]).decode() for row, n in zip(fields["text"], fields["text.length"])]
            assert texts == [f"number {i}" * (i % 3) for i in ids]
            assert (fields["array"] == np.float32(ids)[:, None, None]).all()
            assert fields["array"].shape == (BATCH // 2, 2, 3)
            assert fields["audio.length"].tolist() == (ids + 1).tolist()
            assert fields["audio"].shape == (BATCH // 2, ids.max() + 1)
            assert (fields["audio"].sum(axis=1) == (ids + 1) / 4).all()
            assert batch.pictures.pixels.padded()[:, 0].tolist() == ids.tolist()
            seen += ids.tolist()
    assert len(seen) == NUM // BATCH * BATCH
    assert not set(seen) & set(BROKEN)


def test_without_views_pictures_are_not_read(tmp_path: Path) -> None:
    shard = write_shard(
        tmp_path / "a.tar", ((f"{i}", {"wav": wav(np.zeros((9, 1), np.int16))}) for i in range(24))
    )
    index = open_index(shard, tmp_path / "index", images=False)
    share = Stream(index.path, Plan(24, 0.0, 3, BATCH), 1, (), ("audio",), 1 << 20).share(0, 0, 1)
    assert share.pictures is None
    assert share.fields["audio"].shape == (BATCH, 9)
    assert not share.bad.any()


def test_the_size_of_a_typical_sample_is_measured(tmp_path: Path) -> None:
    stream = make_stream(tmp_path, sides=(100,), views=(ViewSpec(count=2, size=64),)).measured()
    assert stream.decoded_bytes == 3 * 100**2
    assert 2 * 3 * 64**2 < stream.row_bytes < 2 * 3 * 64**2 + 200
    assert stream.block_rows(BATCH) % BATCH == 0
