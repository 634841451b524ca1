import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vergence.platform.data.sources.pictures import Pictures, open_pictures
from vergence.platform.data.sources.source import Packed
from vergence.platform.errors import UserError

RAMP = np.linspace(0, 65535, 64).reshape(8, 8).astype(np.uint16)


def first(source: Pictures) -> Packed:
    return next(source.samples(0, 1))


def pixels(source: Pictures) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(first(source).data)))


def test_pictures_of_16_bits_are_scaled_and_not_cut_off() -> None:
    source = Pictures([(Image.fromarray(RAMP), 3)], "a", None, None, labelled=True)
    np.testing.assert_array_equal(pixels(source), np.repeat((RAMP >> 8)[..., None], 3, -1))
    bad = Pictures([Image.fromarray(RAMP.astype(np.float32))], "a", None, None, labelled=True)
    with pytest.raises(UserError, match="sample 0 cannot be packed: floating-point pixels"):
        list(bad.samples(0, 1))


def test_classes_that_are_no_numbers_are_refused_with_the_cure() -> None:
    data: list[Any] = [(Image.new("L", (4, 4)), {"boxes": []})]
    with pytest.raises(UserError, match=r"sample 0 has a dict for a class, not a number; .*--label none"):
        list(Pictures(data, "a", None, None, labelled=True).samples(0, 1))
    [sample] = Pictures(data, "a", ["x"], None, labelled=False).samples(0, 1)
    assert sample.label is None


def test_names_of_classes_are_words() -> None:
    data = [(Image.new("L", (4, 4)), 0)]
    assert Pictures(data, "a", [("tench", "Tinca tinca"), "cat"], None, labelled=True).classes == [
        "tench, Tinca tinca",
        "cat",
    ]


def test_a_data_set_without_samples_is_refused() -> None:
    with pytest.raises(UserError, match=r"torchvision:FakeData.*no samples"):
        open_pictures("torchvision", "FakeData?size=0", None, None)


def test_label_none_leaves_the_classes_out() -> None:
    source = open_pictures("sklearn", "digits?split=test", None, "none")
    assert source.classes is None
    assert first(source).label is None
    with pytest.raises(UserError, match="--label digit: sklearn:digits has no columns"):
        open_pictures("sklearn", "digits", None, "digit")


def test_digits_are_moved_by_whole_pixels_in_every_direction_and_the_same_way_each_time() -> None:
    def pack(spec: str) -> list[np.ndarray]:
        source = open_pictures("sklearn", spec, None, None)
        return [np.array(Image.open(io.BytesIO(each.data)))[..., 0] for each in source.samples(0, source.num)]

    still, moved = pack("digits?split=test"), pack("digits?split=test&shift=1")
    found = []
    for before, after in zip(still, moved, strict=True):
        framed = np.pad(before, 1)
        fits = [
            (down, right)
            for down in range(3)
            for right in range(3)
            if np.array_equal(framed[down : down + 8, right : right + 8], after)
        ]
        assert len(fits) == 1
        found += fits
    counts = [found.count((down, right)) for down in range(3) for right in range(3)]
    assert min(counts) > 359 / 9 / 2
    np.testing.assert_array_equal(moved, pack("digits?split=test&shift=1"))
    with pytest.raises(UserError, match="shift=5; valid: 0 to 4"):
        open_pictures("sklearn", "digits?shift=5", None, None)
