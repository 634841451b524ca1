"""What a request holds: one image as JPEG, PNG or WebP, or pixels as npy; and how its vectors are written."""

import io
import json
import math
from collections.abc import Mapping
from http import HTTPStatus

import numpy as np
from numpy.typing import NDArray

from vergence.platform.data.decode import BadSample, TooManyPixels, decode

MAX_IMAGES = 256  # of one npy: they are all resized before the first one is embedded
NPY = "application/x-npy"
NPY_MAGIC = b"\x93NUMPY"
IMAGE_MAGICS = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"

Pixels = NDArray[np.uint8]


class Refused(Exception):
    """A request that gets no vectors, and HTTP's status for the reason."""

    def __init__(self, status: HTTPStatus, reason: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(reason)
        self.status, self.headers = status, headers


def read_images(body: bytes, max_pixels: int) -> list[Pixels]:
    """The images of a request, uint8 (H, W, 3) each.

    max_pixels: the largest H x W of an image; read from its header, before anything is decoded.
    Raises Refused: 413, too many pixels or images; 422, no image, a damaged one, or another array.
    """
    if body.startswith(NPY_MAGIC):
        return list(_npy(body, max_pixels))
    if not (body.startswith(IMAGE_MAGICS) or (body[:4] == b"RIFF" and body[8:12] == b"WEBP")):
        raise _unusable("the body is no JPEG, PNG, WebP or npy")
    try:
        return [decode(body, max_pixels)]
    except TooManyPixels as error:
        raise Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, str(error)) from None
    except BadSample as error:
        raise _unusable(f"the image cannot be read: {error}") from None


def _npy(body: bytes, max_pixels: int) -> Pixels:
    """(n, H, W, 3), of the format's versions 1 and 2; nothing is allocated before the sizes agree."""
    stream = io.BytesIO(body)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    try:
        shape, is_fortran, dtype = readers[np.lib.format.read_magic(stream)](stream)
    except (ValueError, KeyError, SyntaxError):
        raise _unusable("the npy has no header that numpy's versions 1 and 2 know") from None
    if dtype != np.uint8 or len(shape) not in (3, 4) or shape[-1] != 3 or not math.prod(shape):
        raise _unusable(f"the npy holds {dtype} {shape}, not uint8 (H, W, 3) or (n, H, W, 3)")
    if math.prod(shape) != len(body) - stream.tell():
        raise _unusable(f"the npy says {shape} and holds {len(body) - stream.tell():,} bytes")
    height, width = shape[-3:-1]
    if height * width > max_pixels:
        reason = f"{width} x {height} pixels are more than {max_pixels:,}"
        raise Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, reason)
    if len(shape) == 4 and shape[0] > MAX_IMAGES:
        reason = f"{shape[0]:,} images are more than {MAX_IMAGES} in one request"
        raise Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, reason)
    flat = np.frombuffer(body, np.uint8, offset=stream.tell())
    return flat.reshape(shape, order="F" if is_fortran else "C").reshape(-1, *shape[-3:])


def _unusable(reason: str) -> Refused:
    return Refused(HTTPStatus.UNPROCESSABLE_ENTITY, reason)


def written(rows: NDArray[np.float32], encoder: str, accept: str) -> tuple[bytes, str]:
    """A response's body and media type: npy float32 (n, dim) where `accept` asks for it, else JSON."""
    if NPY in accept:
        stream = io.BytesIO()
        np.save(stream, rows, allow_pickle=False)
        return stream.getvalue(), NPY
    return json.dumps({"encoder": encoder, "embeddings": rows.tolist()}).encode(), "application/json"
