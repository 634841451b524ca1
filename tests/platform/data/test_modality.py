"""Members other than images: what they hold, what makes one bad, and how rows are put together."""

import io
import json
import struct
from typing import Any

import numpy as np
import pytest
from shard_files import wav

from vergence.platform.data.decode import BadSample
from vergence.platform.data.modality import MODALITIES, decode_array, decode_audio, decode_json, decode_text
from vergence.platform.data.ragged import Ragged
from vergence.platform.data.share import rows_of
from vergence.platform.errors import VergenceError


def riff(kind: int, bits: int, channels: int, data: bytes, extra: bytes = b"") -> bytes:
    """A WAV of any format, with a chunk of somebody's notes (of odd length) before the data."""
    form = struct.pack("<HHIIHH", kind, channels, 16_000, 0, 0, bits) + extra
    chunks = [(b"fmt ", form), (b"LIST", b"abc\0"), (b"data", data)]
    body = b"".join(name + struct.pack("<I", len(each)) + each for name, each in chunks)
    body = body.replace(b"LIST" + struct.pack("<I", 4), b"LIST" + struct.pack("<I", 3))
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WAVE" + body


def collated(name: str, members: list[bytes]) -> dict[str, Any]:
    modality = MODALITIES[name]
    rows = rows_of("", [modality.decode(member) for member in members])
    return dict(modality.collate(rows))


def test_wav_of_the_standard_library() -> None:
    samples = np.array([[0, 0], [32767, -32768], [-16384, 16384]], np.int16)
    parts = decode_audio(wav(samples))
    assert parts[""].dtype == np.float32
    np.testing.assert_allclose(np.asarray(parts[""], float), (samples / 32768).mean(1), atol=1e-7)
    assert parts[".rate"] == 8000
    low = decode_audio(wav(np.array([[0], [128], [255]], np.uint8)))
    np.testing.assert_allclose(np.asarray(low[""], float), [-1, 0, 127 / 128])


def test_other_formats_of_wav() -> None:
    wanted = np.array([0.5, -0.25, 0.0, -1.0], np.float32)
    whole = (wanted * 2**31).astype(np.int64)
    deep = b"".join(int(each >> 8).to_bytes(3, "little", signed=True) for each in whole)
    extensible = struct.pack("<HHIH", 22, 24, 4, 1) + bytes(14)
    for data in (
        riff(1, 24, 1, deep),
        riff(0xFFFE, 24, 1, deep, extensible),
        riff(1, 32, 1, whole.astype("<i4").tobytes()),
        riff(3, 32, 1, wanted.tobytes()),
        riff(3, 64, 1, wanted.astype("<f8").tobytes()),
        riff(1, 32, 1, whole.astype("<i4").tobytes() + b"\0"),  # a frame that is not whole
    ):
        np.testing.assert_allclose(np.asarray(decode_audio(data)[""], float), wanted, atol=1e-6)


@pytest.mark.parametrize(
    ("decode", "data", "reason"),
    [
        (decode_audio, wav(np.zeros((9, 1), np.int16))[:-4], "truncated WAV: 14 of 18 bytes"),
        (decode_audio, b"RIFF\0\0\0\0WAVE", "without data"),
        (decode_audio, b"RIFF\0\0\0\0WAVEdata\2\0\0\0ab", "without a format"),
        (decode_audio, riff(85, 16, 1, b"abcd"), "format 85"),
        (decode_text, b"caf\xe9", "no UTF-8"),
        (decode_json, b"{'a': 1}", "no JSON"),
        (decode_array, b"\x93NUMPY", "no .npy"),
        (decode_array, b"", "no .npy"),
    ],
)
def test_damaged_members_are_bad_samples(decode: Any, data: bytes, reason: str) -> None:
    with pytest.raises(BadSample, match=reason):
        decode(data)


def test_objects_in_an_npy_are_never_unpickled() -> None:
    file = io.BytesIO()
    np.save(file, np.array([{}], object), allow_pickle=True)
    with pytest.raises(BadSample):
        decode_array(file.getvalue())


def test_text_and_json_come_as_bytes_that_can_be_read_back() -> None:
    texts = collated("text", [b"Ei, gelb", b"", "日本".encode()])
    assert texts[".length"].tolist() == [8, 0, 6]
    back = [bytes(row[:length]).decode() for row, length in zip(texts[""], texts[".length"])]
    assert back == ["Ei, gelb", "", "日本"]
    assert texts[""].dtype == np.uint8
    values = [{"b": [1, 2.5], "a": "é"}, None, [1]]
    found = collated("json", [json.dumps(value, indent=3).encode() for value in values])
    assert [json.loads(bytes(row[:n])) for row, n in zip(found[""], found[".length"])] == values
    assert decode_json(b'{"b": 1, "a": 2}')[""].tobytes() == decode_json(b'{"a":2,"b":1}')[""].tobytes()


def test_audio_is_padded_with_silence() -> None:
    found = collated("audio", [wav(np.full((n, 1), 8192, np.int16), rate=100 + n) for n in (3, 5)])
    assert found[""].tolist() == [[0.25] * 3 + [0.0] * 2, [0.25] * 5]
    assert found[".length"].tolist() == [3, 5]
    assert found[".rate"].tolist() == [103, 105]


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def test_arrays_are_stacked_and_must_have_one_shape() -> None:
    arrays = np.random.default_rng(0).normal(size=(3, 2, 4)).astype(np.float32)
    found = collated("array", [npy(array) for array in arrays])
    assert found.keys() == {""}
    np.testing.assert_array_equal(found[""], arrays)
    big_endian = collated("array", [npy(array.astype(">f4")) for array in arrays])
    np.testing.assert_array_equal(big_endian[""], arrays)
    assert collated("array", [npy(np.array(7)), npy(np.array(8))])[""].tolist() == [7, 8]
    with pytest.raises(VergenceError, match=r"\(2, 4\) and \(4, 2\)"):
        collated("array", [npy(arrays[0]), npy(arrays[0].T)])


def test_rows_are_those_of_their_modality() -> None:
    rows = rows_of("audio", [decode_audio(wav(np.zeros((n, 1), np.int16))) for n in (2, 1)])
    assert list(rows) == ["audio", "audio.rate"]
    assert isinstance(rows["audio"], Ragged)
