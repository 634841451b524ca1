import io

import numpy as np
import pytest
from PIL import Image

from vergence.platform.data.formats import IMAGE_EXTENSIONS, START, common_name, image_format, is_image

NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8))
FORMATS = {
    "jpg": "JPEG",
    "png": "PNG",
    "gif": "GIF",
    "webp": "WEBP",
    "jp2": "JPEG2000",
    "avif": "AVIF",
    "tif": "TIFF",
    "bmp": "BMP",
    "ppm": "PPM",
}


@pytest.mark.parametrize("extension", FORMATS)
def test_first_bytes_tell_the_format(extension: str) -> None:
    file = io.BytesIO()
    NOISE.save(file, FORMATS[extension])
    start = file.getvalue()[:START]
    assert image_format(start) == extension
    shared = extension in ("tif", "bmp", "ppm")
    assert image_format(start, weak=False) == (None if shared else extension)
    assert extension in IMAGE_EXTENSIONS


@pytest.mark.parametrize(
    "start",
    [
        b"",
        b"BMW is a car, and this is a text",
        b"P6000 is a car",
        b"\0\0\0\x18ftypheic",
        b"RIFF1234WAVE",
        b"<!DOCTYPE html>",
    ],
)
def test_what_is_no_image_that_can_be_read(start: bytes) -> None:
    assert image_format(start) is None


def test_endings() -> None:
    assert [common_name(name) for name in ("jfif", "jpe", "jpeg", "png")] == ["jpg", "jpg", "jpeg", "png"]
    assert [is_image(name) for name in ("jpg", "seg.png", "jpg.txt", "cls", "")] == [
        True,
        True,
        False,
        False,
        False,
    ]
