import io
import itertools
import zipfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from vergence.platform.data.decode import BadSample, decode

NOISE = np.random.default_rng(0).integers(0, 256, (33, 47, 4), np.uint8)
SMOOTH = np.stack([np.add.outer(np.arange(64) * 3, np.arange(50) * c) % 256 for c in (1, 2, 3)], -1).astype(
    np.uint8
)


def encode(array: np.ndarray | Image.Image, format: str, mode: str | None = None, **options: Any) -> bytes:
    image = Image.fromarray(array) if isinstance(array, np.ndarray) else array
    file = io.BytesIO()
    (image.convert(mode) if mode else image).save(file, format, **options)
    return file.getvalue()


def pillow(data: bytes) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(data)).convert("RGB"))


def rotated() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


RGB, RGBA = NOISE[..., :3], NOISE
GAMMA = PngImagePlugin.PngInfo()
GAMMA.add(b"gAMA", (90000).to_bytes(4, "big"))
FILES = {
    "jpeg 4:4:4": encode(SMOOTH, "JPEG", quality=95, subsampling=0),
    "jpeg 4:2:2": encode(SMOOTH, "JPEG", subsampling=1),
    "jpeg 4:2:0": encode(SMOOTH, "JPEG", subsampling=2),
    "jpeg progressive": encode(SMOOTH, "JPEG", progressive=True),
    "jpeg gray": encode(SMOOTH, "JPEG", "L"),
    "jpeg cmyk": encode(SMOOTH, "JPEG", "CMYK"),
    "jpeg rgb": encode(SMOOTH, "JPEG", keep_rgb=True),
    "jpeg exif rotation": encode(SMOOTH, "JPEG", exif=rotated()),
    "png rgb": encode(RGB, "PNG"),
    "png rgba": encode(RGBA, "PNG"),
    "png gray": encode(RGB, "PNG", "L"),
    "png gray alpha": encode(RGBA, "PNG", "LA"),
    "png palette": encode(Image.fromarray(RGB).quantize(13), "PNG"),
    "png palette transparent": encode(Image.fromarray(RGB).quantize(13), "PNG", transparency=b"\0\x80"),
    "png 1 bit": encode(RGB, "PNG", "1"),
    "png 16 bit rgb": cv2.imencode(".png", RGB.astype(np.uint16) * 200)[1].tobytes(),
    "png gamma": encode(RGB, "PNG", pnginfo=GAMMA),
    "png exif rotation": encode(RGB, "PNG", exif=rotated()),
    "apng": encode(RGB, "PNG", save_all=True, append_images=[Image.fromarray(RGB[::-1])]),
    "webp lossless": encode(RGB, "WEBP", lossless=True),
    "webp lossy": encode(SMOOTH, "WEBP", quality=60),
    "webp alpha": encode(RGBA, "WEBP", quality=60),
    "webp lossless alpha": encode(RGBA, "WEBP", lossless=True),
    "webp exif rotation": encode(RGB, "WEBP", lossless=True, exif=rotated()),
    "webp animated": encode(
        RGB, "WEBP", save_all=True, append_images=[Image.fromarray(RGB[::-1])], lossless=True
    ),
    "gif": encode(RGB, "GIF"),
    "bmp": encode(RGB, "BMP"),
    "tiff": encode(RGB, "TIFF"),
    "ppm": encode(RGB, "PPM"),
}


@pytest.mark.filterwarnings(
    "ignore:Palette images with Transparency"
)  # Pillow's, as we ask it to compare with
@pytest.mark.parametrize("kind", FILES)
def test_pixels_equal_pillow(kind: str) -> None:
    pixels = decode(FILES[kind])
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous
    np.testing.assert_array_equal(pixels, pillow(FILES[kind]))


def test_pixels_of_real_photos_equal_pillow(shared: Path) -> None:
    with zipfile.ZipFile(shared / "data/photos/photos.zip") as photos:
        names = [name for name in photos.namelist() if name.endswith(".jpg")][:20]
        assert len(names) == 20
        for name in names:
            np.testing.assert_array_equal(decode(photos.read(name)), pillow(photos.read(name)))


CUTS = ["jpeg 4:2:0", "jpeg progressive", "jpeg gray", "jpeg cmyk", "png rgb", "webp lossless", "webp lossy"]


@pytest.mark.parametrize(("kind", "share"), [*itertools.product(CUTS, (0.1, 0.5, 0.9))])
def test_truncated_file_is_bad_and_silent(kind: str, share: float, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(BadSample):
        decode(FILES[kind][: int(len(FILES[kind]) * share)])
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("kind", ["jpeg 4:2:0", "jpeg progressive", "jpeg gray"])
def test_jpeg_that_lacks_data_is_bad_even_with_an_end_mark(kind: str) -> None:
    """libjpeg fills the rest with grey, and Pillow accepts it."""
    data = FILES[kind][: len(FILES[kind]) * 9 // 10] + b"\xff\xd9"
    assert pillow(data).size
    with pytest.raises(BadSample, match="truncated JPEG"):
        decode(data)


def test_jpeg_with_harmless_garbage_is_read_like_pillow() -> None:
    data = FILES["jpeg 4:2:0"]
    with_garbage = data[:-2] + b"\x12\x34\x56" * 30 + data[-2:] + b"behind the end"
    np.testing.assert_array_equal(decode(with_garbage), pillow(with_garbage))


def test_flipped_byte_in_a_png_is_bad_and_silent(capfd: pytest.CaptureFixture[str]) -> None:
    data = bytearray(FILES["png rgb"])
    data[len(data) // 2] ^= 0xFF
    with pytest.raises(BadSample):
        decode(bytes(data))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "data", [b"", b"\0" * 100, b"no image at all", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF1234WEBP"]
)
def test_what_is_no_image_is_bad(data: bytes) -> None:
    with pytest.raises(BadSample):
        decode(data)


@pytest.mark.parametrize(
    "kind",
    [
        "jpeg 4:2:0",
        "jpeg cmyk",
        "png rgb",
        "png 16 bit rgb",
        "webp lossless",
        "webp lossy",
        "webp alpha",
        "bmp",
    ],
)
def test_pixel_limit(kind: str) -> None:
    height, width, _ = pillow(FILES[kind]).shape
    assert decode(FILES[kind], height * width).shape == (height, width, 3)
    with pytest.raises(BadSample, match=f"{width} x {height} pixels are more than"):
        decode(FILES[kind], height * width - 1)


def test_decompression_bomb_is_refused_by_its_header() -> None:
    bomb = bytearray(FILES["png rgb"])
    bomb[16:24] = (60000).to_bytes(4, "big") * 2
    with pytest.raises(BadSample, match="60000 x 60000 pixels"):
        decode(bytes(bomb))
