"""Small shards and folders of PNG images and WAV sounds, written with nothing but the standard library and Pillow."""

import io
import tarfile
import wave
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

NOISE = np.random.default_rng(0).integers(0, 256, (40, 6, 6, 3), np.uint8)


def png(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def wav(samples: np.ndarray, rate: int = 8000) -> bytes:
    """By the standard library: samples (n, channels), int16, uint8 or int32."""
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(samples.shape[1])
        writer.setsampwidth(samples.itemsize)
        writer.setframerate(rate)
        writer.writeframes(samples.tobytes())
    return file.getvalue()


def write_shard(path: Path, samples: Iterable[tuple[str, Mapping[str, bytes]]]) -> Path:
    """A webdataset tar of (key, {extension: bytes}) samples."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for key, members in samples:
            for extension, data in members.items():
                info = tarfile.TarInfo(f"{key}.{extension}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return path


def as_webdataset_reads(shard: Path) -> list[dict[str, Any]]:
    """The samples of a shard by webdataset's reader, from a file that is closed again: what it opens, it leaves open."""
    from webdataset.tariterators import group_by_keys, tar_file_expander

    with shard.open("rb") as stream:
        members = tar_file_expander([{"url": str(shard), "stream": stream}])
        return [
            {key: value for key, value in sample.items() if key != "__url__"}
            for sample in group_by_keys(members)
        ]


def image_folder(root: Path, classes: Sequence[str] = ("cat", "dog"), each: int = 5) -> Path:
    for number, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for i in range(each):
            (root / name / f"{i}.png").write_bytes(png(NOISE[number * each + i]))
    return root
