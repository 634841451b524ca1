"""What the members of a sample are, besides its image: how one is decoded, and how many are put together.

A field that a method needs has the name of a modality. It comes as arrays whose dim 0 is samples: NAME, and what the
modality adds to it (NAME.length, NAME.rate).
"""

import io
import json
import struct
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vergence.platform.data.decode import BadSample
from vergence.platform.data.ragged import Array, Ragged
from vergence.platform.errors import UserError, VergenceError

# By what follows the name of the field; "" is the member itself.
Parts = Mapping[str, Array]
Rows = Mapping[str, Array | Ragged]


class Modality(NamedTuple):
    """One kind of member.

    decode: what one member holds, numbers () or rows (k,); raises BadSample.
    collate: n of them as arrays (n, ...).
    """

    decode: Callable[[bytes], Parts]
    collate: Callable[[Rows], Parts]


def padded(rows: Rows) -> Parts:
    """Rows (n, longest) with zeros behind the shorter ones, and `.length`, int64 (n,)."""
    parts: dict[str, Array] = {}
    for name, row in rows.items():
        parts |= (
            {name: row.padded(), f"{name}.length": row.lengths} if isinstance(row, Ragged) else {name: row}
        )
    return parts


def stacked(rows: Rows) -> Parts:
    """(n, *shape). Raises VergenceError: the shapes differ."""
    values, shapes = rows[""], rows[".shape"]
    assert isinstance(values, Ragged)
    assert isinstance(shapes, Ragged)
    found = sorted({tuple(shape.tolist()) for shape in np.split(shapes.flat, np.cumsum(shapes.lengths)[:-1])})
    if len(found) > 1:
        raise VergenceError(
            f"arrays (.npy) of shapes {found[0]} and {found[1]} in one batch; all of a set must have one shape"
        )
    return {"": values.flat.reshape(len(values), *found[0])}


def decode_text(data: bytes) -> Parts:
    """UTF-8 as uint8 (bytes,): what a tokeniser takes."""
    try:
        data.decode()
    except UnicodeDecodeError as error:
        raise BadSample(f"text that is no UTF-8: {error}") from None
    return {"": np.frombuffer(data, np.uint8)}


def decode_json(data: bytes) -> Parts:
    """The value written in one way (sorted keys, no spaces), uint8 (bytes,): `json.loads` reads it back."""
    try:
        value = json.loads(data)
    except ValueError as error:
        raise BadSample(f"no JSON: {error}") from None
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return {"": np.frombuffer(text.encode(), np.uint8)}


def decode_array(data: bytes) -> Parts:
    """The numbers of an .npy file, and their shape."""
    try:
        array = np.load(io.BytesIO(data), allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise BadSample(f"no .npy of numbers: {error}") from None
    if array.dtype.kind not in "iuf":
        raise BadSample(f"an .npy of {array.dtype}, not of numbers")
    values = np.ascontiguousarray(array, array.dtype.newbyteorder("=")).reshape(-1)
    return {"": values, ".shape": np.array(array.shape, np.int64)}


def decode_audio(data: bytes) -> Parts:
    """The mean over channels, float32 (samples,) in [-1, 1], and `.rate`, int64 (), in Hz."""
    wave, rate = _wav(data) if data[:4] == b"RIFF" else _sound_file(data)
    return {"": np.ascontiguousarray(wave.mean(axis=1), np.float32), ".rate": np.array(rate, np.int64)}


_PCM, _FLOAT, _EXTENSIBLE = 1, 3, 0xFFFE


def _wav(data: bytes) -> tuple[NDArray[np.float32], int]:
    """(samples, channels) in [-1, 1] and the rate: PCM of 8, 16, 24 or 32 bits, or floating point."""
    kind, channels, rate, bits, at = 0, 0, 0, 0, 12
    while at + 8 <= len(data):
        name, size = struct.unpack_from("<4sI", data, at)
        if name == b"fmt " and size >= 16 and at + 8 + size <= len(data):
            kind, channels, rate, _, _, bits = struct.unpack_from("<HHIIHH", data, at + 8)
            if kind == _EXTENSIBLE and size >= 26:
                (kind,) = struct.unpack_from("<H", data, at + 8 + 24)
        elif name == b"data":
            if not channels:
                raise BadSample("a WAV without a format before its data")
            if at + 8 + size > len(data):
                raise BadSample(f"truncated WAV: {len(data) - at - 8:,} of {size:,} bytes")
            whole = size - size % (channels * max(1, bits // 8))
            return _samples(data[at + 8 : at + 8 + whole], kind, bits).reshape(-1, channels), rate
        at += 8 + size + size % 2
    raise BadSample("a WAV without data")


def _samples(data: bytes, kind: int, bits: int) -> NDArray[np.float32]:
    if kind == _PCM and bits == 8:
        return (np.frombuffer(data, np.uint8).astype(np.float32) - 128) * np.float32(1 / 128)
    if kind == _PCM and bits == 24:
        wide = np.zeros((len(data) // 3, 4), np.uint8)
        wide[:, 1:] = np.frombuffer(data, np.uint8).reshape(-1, 3)
        return wide.view("<i4").ravel().astype(np.float32) * np.float32(2.0**-31)
    if kind == _PCM and bits in (16, 32):
        return np.frombuffer(data, f"<i{bits // 8}").astype(np.float32) * np.float32(2.0 ** (1 - bits))
    if kind == _FLOAT and bits in (32, 64):
        return np.frombuffer(data, f"<f{bits // 8}").astype(np.float32)
    raise BadSample(f"a WAV of format {kind} with {bits} bits; PCM and floating point can be read")


def _sound_file(data: bytes) -> tuple[NDArray[np.float32], int]:
    """By soundfile, which knows FLAC and Ogg."""
    try:
        import soundfile
    except ImportError:
        raise UserError("audio other than WAV is read by soundfile: pip install 'vergence[audio]'") from None
    try:
        wave, rate = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
    except soundfile.SoundFileError as error:
        raise BadSample(f"cannot be decoded: {error}") from None
    return wave, rate


TEXT = "text"
LABEL = "label"  # the class by the index, int64 (n,), -1 for a sample without one

MODALITIES: Mapping[str, Modality] = {
    TEXT: Modality(decode_text, padded),
    "json": Modality(decode_json, padded),
    "audio": Modality(decode_audio, padded),
    "array": Modality(decode_array, stacked),
}
FIELDS = (LABEL, *MODALITIES)
