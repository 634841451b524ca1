"""Crops cut by readers against Pillow, and how they lie in a record."""

import numpy as np
import pytest
from PIL import Image

from vergence.platform.augment import draw
from vergence.platform.augment.crop import Layout, cut, layout, layout_ends, resize, view_sizes
from vergence.platform.augment.presets import PRESETS, ViewSpec


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).integers(0, 256, (*shape, 3), dtype=np.uint8)


def test_resize_equals_pillow() -> None:
    image = np.asarray(Image.fromarray(noise(90, 120)).resize((400, 300)))  # smooth, as photos are
    assert not image.flags.writeable
    rng = np.random.default_rng(0)
    for i in range(12):
        top, left = int(rng.integers(0, 290)), int(rng.integers(0, 390))
        height, width = int(rng.integers(1, 301 - top)), int(rng.integers(1, 401 - left))
        crop = Image.fromarray(image[top : top + height, left : left + width])
        expected = np.asarray(crop.resize((64, 64), Image.Resampling.BILINEAR)).astype(int)
        got = resize(image, np.array([top, left, height, width]), i % 2 == 1, 64)
        got = got.transpose(1, 2, 0).astype(int)
        assert np.abs((got[:, ::-1] if i % 2 else got) - expected).max() <= 1


@pytest.mark.parametrize(
    ("side", "sizes", "expected"),
    [
        (32, (32, 32), Layout(32, (-1, -1), 3072)),  # CIFAR: the picture once
        (32, (32, 16), Layout(32, (-1, 3072), 3840)),  # multi-crop
        (500, (224, 96), Layout(0, (0, 150528), 178176)),  # photos: no picture
        (28, (32,), Layout(32, (-1,), 3072)),
        (1, (8,), Layout(1, (-1,), 3)),
        (8, (), Layout(0, (), 0)),
    ],
)
def test_what_travels_follows_from_the_pictures_size(
    side: int, sizes: tuple[int, ...], expected: Layout
) -> None:
    assert layout(side, sizes) == expected


@pytest.mark.parametrize("sizes", [(32, 32), (32, 16), (224, 96), (24, 24, 8), (1,), (33, 5, 31)])
def test_layouts_change_only_at_their_ends(sizes: tuple[int, ...]) -> None:
    kinds = np.searchsorted(layout_ends(sizes), np.arange(1, 600))
    found: dict[int, set[Layout]] = {}
    for side, kind in zip(range(1, 600), kinds.tolist()):
        found.setdefault(kind, set()).add(layout(side, sizes))
    assert all(len(layouts) == 1 for layouts in found.values())
    assert kinds[sizes[0] :].tolist() == [kinds[-1]] * (599 - sizes[0])


def test_records_hold_the_drawn_crops_and_small_pictures_whole() -> None:
    specs = ViewSpec(count=2, size=24, recipe="byol"), ViewSpec(size=8, crop_scale=(0.05, 0.3), flip=1.0)
    pictures = [noise(20, 24), noise(60, 40), noise(3, 8), noise(24, 90)]
    ids, epochs = np.array([2**40, 7, 1, 0]), np.array([0, 0, 3, 3])
    got = cut(pictures, ids, epochs, specs, seed=5)
    sizes = view_sizes(specs)
    assert sizes == (24, 24, 8)
    assert got.sizes.tolist() == [[20, 24], [60, 40], [3, 8], [24, 90]]
    assert got.geometry.shape == (4, 3, 5)
    settings = [*PRESETS["byol"], specs[1].augmentations()[0]]
    for row, picture in enumerate(pictures):
        record = got.pixels[row : row + 1].flat
        lies = layout(max(picture.shape[:2]), sizes)
        assert len(record) == lies.length
        if lies.whole:
            square = record[: 3 * lies.whole**2].reshape(3, lies.whole, lies.whole)
            height, width, _ = picture.shape
            assert (square[:, :height, :width] == picture.transpose(2, 0, 1)).all()
        for view, (spec, size) in enumerate(zip(settings, sizes)):
            counter = draw.Counter.of(5, ids[[row]], int(epochs[row]), view)
            (box,), (flip,) = draw.crops(spec, counter, *np.array(picture.shape[:2])[:, None])
            assert got.geometry[row, view].tolist() == [*box, flip]
            if lies.crops[view] >= 0:
                crop = record[lies.crops[view] :][: 3 * size**2].reshape(3, size, size)
                assert (crop == resize(picture, box, flip, size)).all()
                assert max(picture.shape[:2]) > size


def test_no_picture_is_no_record() -> None:
    got = cut([], np.array([], np.int64), 0, [ViewSpec(count=2, size=8)], 0)
    assert (len(got.pixels), got.sizes.shape, got.geometry.shape) == (0, (0, 2), (0, 2, 5))
