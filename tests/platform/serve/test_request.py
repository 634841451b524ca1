"""What a request may hold, and what it is answered for anything else."""

import io
import json
import zlib
from http import HTTPStatus

import numpy as np
import pytest
from PIL import Image

from vergence.platform.serve.request import MAX_IMAGES, NPY, Refused, read_images, written

IMAGE = np.random.default_rng(0).integers(0, 256, (20, 24, 3), dtype=np.uint8)


def encoded(kind: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(IMAGE).save(file, kind, **({"lossless": True} if kind == "WEBP" else {}))
    return file.getvalue()


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def header(text: str) -> bytes:
    """An npy of version 1 with a header of our own and no data."""
    padded = text.encode() + b" " * (-(10 + len(text) + 1) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(padded).to_bytes(2, "little") + padded


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG"])
def test_an_encoded_image_gives_its_pixels(kind: str) -> None:
    [image] = read_images(encoded(kind), 10_000)
    assert image.shape == IMAGE.shape
    if kind != "JPEG":
        np.testing.assert_array_equal(image, IMAGE)


def test_npy_gives_one_or_many_in_either_order() -> None:
    [image] = read_images(npy(IMAGE), 10_000)
    np.testing.assert_array_equal(image, IMAGE)
    many = np.stack([IMAGE, IMAGE[::-1], IMAGE[:, ::-1]])
    for array in (many, np.asfortranarray(many)):
        np.testing.assert_array_equal(np.stack(read_images(npy(array), 10_000)), many)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"GIF89a" + b"\0" * 100,  # Pillow would read it; nobody asked for it
        encoded("PNG")[:-40],
        encoded("JPEG")[:200],
        npy(IMAGE)[:-1],
        npy(IMAGE) + b"\0",
        npy(IMAGE.astype(np.float32)),
        npy(IMAGE[..., 0]),
        npy(IMAGE[:0]),
        npy(np.array([{}], dtype=object)),  # a pickle: never loaded
        header("{'descr': '|u1', 'fortran_order': False, 'shape': (1000000000, 1000, 1000, 3), }"),
        header("{'descr': '|u1', 'fortran_order': False, 'shape': (-1, -1, 3), }"),
        header("__import__('os').abort()"),
        b"\x93NUMPY\x09\x00",
    ],
)
def test_what_holds_no_whole_image_is_422(body: bytes) -> None:
    with pytest.raises(Refused) as refused:
        read_images(body, 10_000)
    assert refused.value.status == HTTPStatus.UNPROCESSABLE_ENTITY


def png_header(width: int, height: int) -> bytes:
    """A PNG that says to be of this size, and is not."""
    chunk = b"IHDR" + width.to_bytes(4, "big") + height.to_bytes(4, "big") + b"\x08\x02\0\0\0"
    return b"\x89PNG\r\n\x1a\n" + (13).to_bytes(4, "big") + chunk + zlib.crc32(chunk).to_bytes(4, "big")


@pytest.mark.parametrize(
    "body",
    [
        encoded("PNG"),
        encoded("JPEG"),
        encoded("WEBP"),
        npy(IMAGE),
        png_header(100_000, 100_000),
        npy(np.zeros((MAX_IMAGES + 1, 2, 2, 3), np.uint8)),
    ],
)
def test_too_many_pixels_or_images_are_413(body: bytes) -> None:
    with pytest.raises(Refused) as refused:
        read_images(body, 479)  # IMAGE has 480
    assert refused.value.status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE


def test_vectors_survive_both_ways_of_writing_them() -> None:
    rows = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
    body, kind = written(rows, "models:/x/1", "application/json, */*")
    said = json.loads(body)
    assert (kind, said["encoder"]) == ("application/json", "models:/x/1")
    np.testing.assert_array_equal(np.array(said["embeddings"], np.float32), rows)
    body, kind = written(rows, "models:/x/1", NPY)
    assert kind == NPY
    np.testing.assert_array_equal(np.load(io.BytesIO(body)), rows)
