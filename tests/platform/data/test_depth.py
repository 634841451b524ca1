"""Pixels above 8 bits: the rule against the stored numbers, in every container that Pillow reads them from."""

import io
import struct

import cv2
import numpy as np
import pytest
from PIL import Image

from vergence.platform.data.decode import BadSample, decode
from vergence.platform.data.depth import to_rgb

RAMP = np.linspace(0, 65535, 48 * 64).reshape(48, 64).astype(np.uint16)


def encode(image: np.ndarray | Image.Image, format: str) -> bytes:
    file = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(file, format)
    return file.getvalue()


def tiff(
    data: bytes, bits: int, photometric: int = 1, sample_format: int = 1, shape: tuple[int, ...] = RAMP.shape
) -> bytes:
    """A one-strip grey TIFF, little-endian, with exactly these tags."""
    height, width = shape
    tags = [(256, width), (257, height), (258, bits), (259, 1), (262, photometric), (273, 0), (277, 1)]
    tags += [(278, height), (279, len(data)), (339, sample_format)]
    start = 8 + 2 + 12 * len(tags) + 4
    entries = [struct.pack("<HHII", tag, 4, 1, start if tag == 273 else value) for tag, value in tags]
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + b"".join(entries) + b"\0\0\0\0" + data


def packed_12_bits(values: np.ndarray) -> bytes:
    """Two numbers in three bytes, the first one's high bits first."""
    a, b = values.reshape(-1, 2).T.astype(np.uint16)
    return np.stack([a >> 4, (a & 15) << 4 | b >> 8, b & 255], -1).astype(np.uint8).tobytes()


def pgm(values: np.ndarray, largest: int) -> bytes:
    return b"P5\n64 48\n%d\n" % largest + values.astype(">u2").tobytes()


GREY = {
    "PNG": encode(RAMP, "PNG"),
    "TIFF": encode(RAMP, "TIFF"),
    "TIFF, big-endian": encode(Image.frombytes("I;16B", (64, 48), RAMP.astype(">u2").tobytes()), "TIFF"),
    "TIFF of 12 bits": tiff(packed_12_bits(RAMP >> 4), 12),
    "JPEG 2000": encode(RAMP, "JPEG2000"),
    "PGM": pgm(RAMP, 65535),
}


@pytest.mark.parametrize("container", GREY)
def test_16_bits_become_their_high_byte(container: str) -> None:
    pixels = decode(GREY[container])
    assert (pixels.dtype, pixels.shape, pixels.flags.c_contiguous) == (np.uint8, (48, 64, 3), True)
    np.testing.assert_array_equal(pixels, np.repeat((RAMP >> 8)[..., None], 3, -1))


def test_a_pgm_of_12_bits_is_scaled_to_its_own_largest_value() -> None:
    pixels = decode(pgm(RAMP >> 4, 4095))[..., 0]
    assert np.abs(pixels.astype(int) - (RAMP >> 8)).max() <= 1
    assert (pixels.min(), pixels.max()) == (0, 255)


def test_colour_of_16_bits_follows_the_same_rule() -> None:
    colour = np.stack([RAMP, RAMP[::-1], RAMP[:, ::-1]], -1)
    for channels in (colour, np.dstack([colour, RAMP])):
        np.testing.assert_array_equal(
            decode(cv2.imencode(".png", channels)[1].tobytes()), (colour >> 8)[..., ::-1]
        )
    np.testing.assert_array_equal(
        decode(cv2.imencode(".tiff", colour)[1].tobytes()), (colour >> 8)[..., ::-1]
    )


def test_white_is_zero_is_turned_round() -> None:
    pixels = decode(tiff(RAMP.astype("<u2").tobytes(), 16, photometric=0))
    np.testing.assert_array_equal(pixels[..., 0], 255 - (RAMP >> 8))


@pytest.mark.parametrize("format", ["TIFF", "PFM"])
def test_floating_point_is_black_at_0_and_white_at_1(format: str) -> None:
    values = (RAMP / 65535).astype(np.float32)
    data = (
        encode(values, "TIFF")
        if format == "TIFF"
        else b"Pf\n64 48\n-1.0\n" + values[::-1].astype("<f4").tobytes()
    )
    np.testing.assert_array_equal(decode(data)[..., 0], np.rint(values * 255))


BAD = {
    "float to 255": (encode((RAMP / 257).astype(np.float32), "TIFF"), "floating-point pixels from 0 to 255"),
    "float below 0": (encode((RAMP / 65535 - 0.5).astype(np.float32), "TIFF"), "from -0.5 to 0.5"),
    "not a number": (encode(np.full((4, 4), np.nan, np.float32), "TIFF"), "from nan to nan"),
    "32 bits": (encode(RAMP.astype(np.int32), "TIFF"), "from 0 to 65,535, have no known range"),
    "signed": (
        tiff((RAMP >> 1).astype("<i2").tobytes(), 16, sample_format=2),
        "from 0 to 32,767, have no known range",
    ),
    "12 bits in 16, PNG": (encode(RAMP >> 4, "PNG"), "the largest value is 4,095 and would be nearly black"),
    "12 bits in 16, TIFF": (encode(RAMP >> 4, "TIFF"), "the largest value is 4,095"),
    "12 bits in 16, colour": (cv2.imencode(".png", np.stack([RAMP >> 4] * 3, -1))[1].tobytes(), "4,095"),
    "8 bits in 16": (encode(RAMP >> 8, "PNG"), "the largest value is 255"),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_has_no_sensible_range_is_bad_and_says_why(kind: str) -> None:
    data, words = BAD[kind]
    with pytest.raises(BadSample, match=words):
        decode(data)


@pytest.mark.parametrize("value", [0, 300, 65535])
def test_a_blank_frame_is_no_fault(value: int) -> None:
    assert (decode(encode(np.full((4, 4), value, np.uint16), "PNG")) == value >> 8).all()


def test_pictures_of_a_library_follow_the_rule_too() -> None:
    assert (to_rgb(Image.fromarray(RAMP))[..., 1] == RAMP >> 8).all()
    assert to_rgb(Image.new("L", (3, 2), 7)).tolist() == np.full((2, 3, 3), 7).tolist()
