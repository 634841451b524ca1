"""What `shards pack` can read: image folders, parquet files, data sets of torchvision and scikit-learn.

A source has keys in a fixed order and gives the samples of any range, so that packing can go on anywhere.
"""

import glob
import hashlib
import io
import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol
from urllib.parse import parse_qsl

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from vergence.platform.data.index import IMAGE_EXTENSIONS
from vergence.platform.errors import UserError, nearest

PARQUET_BATCH = 64
MAX_SIDE = 4096  # pixels of a picture that is resized
DIGITS_TEST = 5  # every fifth digit is a test image


class Packed(NamedTuple):
    """One sample as it goes into a shard."""

    key: str
    extension: str
    data: bytes
    label: int | None


class Source(Protocol):
    """num: samples.  fingerprint: changes when the source does.  classes: names by label, where known."""

    num: int
    fingerprint: str
    classes: list[str] | None

    def samples(self, start: int, stop: int) -> Iterator[Packed]: ...


def open_source(src: str, size: int | None, known_classes: Sequence[str] | None) -> Source:
    """The source that SRC names.

    Args:
        src: folder, parquet file or glob of them, `sklearn:digits?...`, `torchvision:NAME?...`.
        size: pixels of a side; only for sources without bytes of their own.
        known_classes: an image folder keeps these labels if it has no other classes.
    Raises UserError.
    """
    kind, _, spec = src.partition(":")
    if kind in ("sklearn", "torchvision"):
        name, _, query = spec.partition("?")
        options = {key: _value(text) for key, text in parse_qsl(query)}
        return _digits(name, options, size) if kind == "sklearn" else _torchvision(name, options, size)
    if size is not None:
        raise UserError(f"--size {size}: {src} has image files; their bytes are copied, never resized")
    path = Path(src).expanduser()
    if path.is_dir():
        return Folder(path, known_classes)
    files = [path] if path.is_file() else [Path(name) for name in sorted(glob.glob(str(path)))]
    if not files:
        raise UserError(f"{src}: no such file, folder or glob of parquet files")
    for file in files:
        if file.suffix != ".parquet":
            raise UserError(f"{file}: neither a folder of images nor a .parquet file")
    return Parquet(files)


def unique_keys(names: Sequence[str]) -> list[str]:
    """Keys from relative paths: dots become `_`, a repeated key gets -2, -3, ...

    Leading `__` become `_`: webdataset keeps names like __this__ for its own notes.
    """
    keys, used = [], set()
    for name in names:
        stem = key = re.sub("^__+", "_", name.replace(".", "_"))
        number = 1
        while key in used:
            number += 1
            key = f"{stem}-{number}"
        used.add(key)
        keys.append(key)
    return keys


class Folder:
    """Images below a folder, in the order of their paths; class = the first folder, if all images have one."""

    def __init__(self, root: Path, known_classes: Sequence[str] | None = None) -> None:
        self.root = root
        self.paths = sorted(image_paths(root))
        self.num = len(self.paths)
        if not self.paths:
            hint = "; it holds parquet files: name them by a glob" if any(root.glob("**/*.parquet")) else ""
            raise UserError(f"{root}: no images below this folder (.{', .'.join(IMAGE_EXTENSIONS)}){hint}")
        tops = [Path(path).parts[0] for path in self.paths]
        self.classes = sorted(set(tops)) if all("/" in path for path in self.paths) else None
        if self.classes and set(self.classes) <= set(known_classes or ()):
            self.classes = list(
                known_classes or ()
            )  # a test folder that lacks a class keeps the labels of train
        numbers = {name: number for number, name in enumerate(self.classes or [])}
        self.labels = [numbers.get(top) for top in tops]
        self.keys = unique_keys([path.rpartition(".")[0] for path in self.paths])
        self.fingerprint = _digest(
            [(path, os.path.getsize(root / path)) for path in self.paths], self.classes
        )

    def samples(self, start: int, stop: int) -> Iterator[Packed]:
        for i in range(start, stop):
            extension = self.paths[i].rpartition(".")[2].lower()
            yield Packed(self.keys[i], extension, (self.root / self.paths[i]).read_bytes(), self.labels[i])


def image_paths(root: Path) -> Iterator[str]:
    """Relative posix paths; hidden files and folders are left out."""
    for folder, folders, files in os.walk(root, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if not name.startswith(".") and name.rpartition(".")[2].lower() in IMAGE_EXTENSIONS:
                yield Path(folder, name).relative_to(root).as_posix()


class Parquet:
    """Files as on the Hugging Face hub: column `img` or `image` of {bytes, path}, optional integer `label`."""

    def __init__(self, files: Sequence[Path]) -> None:
        self.files = list(files)
        names: list[str] = []
        self.starts: list[int] = []
        for path in self.files:
            self.column, self.has_label = _parquet_columns(path)
            self.starts.append(len(names))
            stored = _stored_names(path, self.column)
            names += [name or f"{len(names) + i:09d}" for i, name in enumerate(stored)]
        self.num = len(names)
        self.keys = unique_keys([str(Path(name).with_suffix("")) for name in names])
        self.classes = _parquet_classes(self.files[0]) if self.has_label else None
        self.fingerprint = _digest([(path.name, path.stat().st_size) for path in self.files], self.keys)

    def samples(self, start: int, stop: int) -> Iterator[Packed]:
        columns = [self.column, "label"] if self.has_label else [self.column]
        for path, first in zip(self.files, self.starts):
            row = first
            file = pq.ParquetFile(path)
            for group in range(file.num_row_groups):
                rows = file.metadata.row_group(group).num_rows
                if row < stop and row + rows > start:
                    for batch in file.iter_batches(PARQUET_BATCH, row_groups=[group], columns=columns):
                        for i in range(max(0, start - row), min(batch.num_rows, stop - row)):
                            yield self._sample(batch, i, row + i)
                        row += batch.num_rows
                else:
                    row += rows

    def _sample(self, batch: Any, row: int, number: int) -> Packed:
        data = batch.column(0)[row]["bytes"].as_py()
        if data is None:
            raise UserError(
                f"{self.keys[number]}: the parquet file names this image but does not hold its bytes"
            )
        label = batch.column(1)[row].as_py() if self.has_label else None
        return Packed(
            self.keys[number], _extension(data), data, None if label is None or label < 0 else label
        )


def _parquet_columns(path: Path) -> tuple[str, bool]:
    """The image column's name, and whether there are labels."""
    try:
        schema = pq.read_schema(path)
    except pa.ArrowInvalid:
        raise UserError(f"{path}: damaged, or no parquet file; fetch it again") from None
    for name in ("img", "image"):
        if name in schema.names and str(schema.field(name).type).startswith("struct<"):
            if "label" in schema.names and not str(schema.field("label").type).startswith(("int", "uint")):
                raise UserError(f"{path}: column label is {schema.field('label').type}, not an integer")
            return name, "label" in schema.names
    raise UserError(
        f"{path}: no column img or image of struct(bytes, path); columns: {', '.join(schema.names)}"
    )


def _stored_names(path: Path, column: str) -> list[str | None]:
    """The file name of each image, where the parquet file knows it."""
    file = pq.ParquetFile(path)
    if file.schema_arrow.field(column).type.get_field_index("path") < 0:
        return [None] * int(file.metadata.num_rows)
    table = file.read(columns=[f"{column}.path"])
    return [name for chunk in table.column(0).chunks for name in chunk.field("path").to_pylist()]


def _parquet_classes(path: Path) -> list[str] | None:
    about = json.loads((pq.read_schema(path).metadata or {}).get(b"huggingface", b"{}"))
    names: list[str] | None = about.get("info", {}).get("features", {}).get("label", {}).get("names")
    return names


def _extension(data: bytes) -> str:
    """By the first bytes; what is no image is found by `shards check`."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    known = {
        b"\xff\xd8": "jpg",
        b"\x89PNG": "png",
        b"GIF8": "gif",
        b"BM": "bmp",
        b"II*": "tif",
        b"MM\0*": "tif",
    }
    return next((name for magic, name in known.items() if data.startswith(magic)), "jpg")


class Pictures:
    """Pictures that a library holds without bytes: written as PNG."""

    def __init__(self, dataset: Any, fingerprint: str, classes: list[str] | None, size: int | None) -> None:
        if size is not None and not (isinstance(size, int) and 0 < size <= MAX_SIDE):
            raise UserError(f"size={size}: the side of a packed picture is 1 to {MAX_SIDE:,} pixels")
        self.dataset, self.num, self.classes, self.size = dataset, len(dataset), classes, size
        self.fingerprint = _digest([(fingerprint, self.num)], size)

    def samples(self, start: int, stop: int) -> Iterator[Packed]:
        for i in range(start, stop):
            item = self.dataset[i]
            picture, label = item if isinstance(item, tuple) else (item, None)
            if not isinstance(picture, Image.Image):
                raise UserError(
                    f"sample {i} is a {type(picture).__name__}; only pictures (PIL) can be packed"
                )
            picture = picture.convert("RGB")
            if self.size:
                picture = picture.resize((self.size, self.size), Image.Resampling.BICUBIC)
            file = io.BytesIO()
            picture.save(file, "PNG")
            yield Packed(f"{i:09d}", "png", file.getvalue(), None if label is None else int(label))


def _digits(name: str, options: dict[str, Any], size: int | None) -> Pictures:
    """scikit-learn's 1,797 handwritten digits; split=train|test, size=PIXELS."""
    unknown = set(options) - {"split", "size"}
    if name != "digits" or unknown:
        raise UserError(f"sklearn:{name}: only sklearn:digits[?split=train|test][&size=PIXELS] can be packed")
    split, size = options.get("split", "all"), size or options.get("size")
    if split not in ("all", "train", "test"):
        raise UserError(f"sklearn:digits: split={split}; valid: all, test, train")
    from sklearn.datasets import load_digits

    digits = load_digits()
    numbers = np.arange(len(digits.target))
    test = numbers % DIGITS_TEST == DIGITS_TEST - 1
    kept = numbers[{"all": np.ones_like(test), "train": ~test, "test": test}[split]]
    grays = np.rint(digits.images[kept] * (255 / 16)).astype(np.uint8)  # pixels are 0 ... 16
    items = [(Image.fromarray(gray), int(label)) for gray, label in zip(grays, digits.target[kept])]
    return Pictures(items, f"sklearn:digits:{split}", [str(digit) for digit in range(10)], size)


def _torchvision(name: str, options: dict[str, Any], size: int | None) -> Pictures:
    """torchvision.datasets.NAME(**options), made from pictures and integer labels."""
    from vergence.methods.torchvision_shim import torchvision

    if name not in torchvision.datasets.__all__:
        raise UserError(
            f"torchvision:{name}: no such data set; {nearest(name, torchvision.datasets.__all__)}"
        )
    try:
        dataset = getattr(torchvision.datasets, name)(**options)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(
            f"torchvision:{name}: {error}; give its arguments as ?name=value&name=value"
        ) from None
    classes = getattr(dataset, "classes", None)
    return Pictures(dataset, f"torchvision:{name}:{sorted(options.items())}", classes, size)


def _value(text: str) -> Any:
    """`true`, `3`, `0.5`, `3,32,32` or a word."""
    if "," in text:
        return tuple(_value(part) for part in text.split(","))
    try:
        return json.loads(text)
    except ValueError:
        return text


def _digest(files: Sequence[tuple[str, int]], more: Any) -> str:
    return hashlib.sha256(json.dumps([files, more]).encode()).hexdigest()
