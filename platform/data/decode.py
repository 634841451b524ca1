"""Image bytes to pixels, fast and exact: what Pillow's `convert("RGB")` gives, byte for byte.

JPEG by simplejpeg (libjpeg-turbo, accurate DCT and upsampling), plain PNG and WebP by OpenCV, the rest by
Pillow. EXIF orientation and colour profiles are ignored, as Pillow ignores them. Pixels of more than 8 bits,
which Pillow would clip to white, are scaled by the rule of `depth`.
"""

import io
import struct
import warnings
import zlib

import cv2
import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

from vergence.platform.data import depth

cv2.setNumThreads(1)
cv2.utils.logging.setLogLevel(0)

MAX_PIXELS = 50_000_000
_PNG = b"\x89PNG\r\n\x1a\n"
_CV2_FLAGS = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION


class BadSample(Exception):
    """The bytes of a sample are no image that can be used; the text says why."""


class TooManyPixels(BadSample):
    """It may be an image, but it is too large to be decoded."""


def decode(data: bytes, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Pixels of an encoded image.

    Args:
        data: a file of any format that Pillow knows.
        max_pixels: the largest height x width; read from the header, before anything is decoded.
    Returns: uint8 (H, W, 3), RGB, C-contiguous.
    Raises BadSample: no image, damaged, truncated, too large, or deeper than 8 bits without a known range.
    """
    if not data:
        raise BadSample("zero bytes")
    try:
        pixels = _fast(data, max_pixels)
        return _pillow(data, max_pixels) if pixels is None else pixels
    except depth.NoRange as error:
        raise BadSample(str(error)) from None


def _fast(data: bytes, max_pixels: int) -> np.ndarray | None:
    """By a decoder of its own where the format has one that agrees with Pillow; else None."""
    if data.startswith(b"\xff\xd8"):
        return _jpeg(data, max_pixels)
    if data.startswith(_PNG):
        return _png(data) if _plain_png(data, max_pixels) else None
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return _cv2(data, _CV2_FLAGS) if _plain_webp(data, max_pixels) else None
    return None


def _limit(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise TooManyPixels(f"{width} x {height} pixels are more than {max_pixels:,}")


def _jpeg(data: bytes, max_pixels: int) -> np.ndarray | None:
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        if colours not in ("YCbCr", "Gray"):
            return None
        _limit(width, height, max_pixels)
        pixels: np.ndarray = simplejpeg.decode_jpeg(data)
        return pixels
    except ValueError as error:
        # libjpeg fills what is missing with grey and warns; Pillow would notice only if the end mark is gone.
        if "premature end" in str(error).lower():
            raise BadSample(f"truncated JPEG: {error}") from None
        return None  # other warnings (bytes between markers, odd subsampling) do not make an image bad


def _plain_png(data: bytes, max_pixels: int) -> bool:
    """Whole and unanimated: OpenCV agrees with Pillow there, and has nothing to print."""
    position = len(_PNG)
    if len(data) < 33 or data[12:16] != b"IHDR":
        return False
    width, height = struct.unpack(">II", data[16:24])
    _limit(width, height, max_pixels)
    kind = b""
    while kind != b"IEND" and position + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        end = position + 8 + length
        if kind == b"acTL" or end + 4 > len(data):
            return False
        if zlib.crc32(memoryview(data)[position + 4 : end]) != int.from_bytes(data[end : end + 4], "big"):
            return False
        position = end + 4
    return kind == b"IEND"


def _png(data: bytes) -> np.ndarray | None:
    if data[24] <= 8:
        return _cv2(data, _CV2_FLAGS)
    pixels = _cv2(data, _CV2_FLAGS | cv2.IMREAD_ANYDEPTH)
    return None if pixels is None else depth.from_uint16(pixels)


def _plain_webp(data: bytes, max_pixels: int) -> bool:
    """Not animated and with a header that we understand (RFC 9649, sections 2.5 to 2.7)."""
    if len(data) < 30:
        return False
    kind = data[12:16]
    if kind == b"VP8X":
        width, height = (1 + int.from_bytes(data[i : i + 3], "little") for i in (24, 27))
    elif kind == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        width, height = 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    elif kind == b"VP8 ":
        width, height = (int.from_bytes(data[i : i + 2], "little") & 0x3FFF for i in (26, 28))
    else:
        return False
    _limit(width, height, max_pixels)
    animated = kind == b"VP8X" and data[20] & 2
    return not animated


def _cv2(data: bytes, flags: int) -> np.ndarray | None:
    try:
        return cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error:
        return None


def _pillow(data: bytes, max_pixels: int) -> np.ndarray:
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(data)) as image:
            _limit(*image.size, max_pixels)
            return depth.to_rgb(image)
    except (BadSample, depth.NoRange):
        raise
    except UnidentifiedImageError:
        raise BadSample("no image that Pillow knows") from None
    except Exception as error:  # Pillow's plugins raise anything on damaged bytes
        raise BadSample(f"cannot be decoded: {error}") from None
