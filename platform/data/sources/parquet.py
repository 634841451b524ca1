"""Parquet files as on the Hugging Face hub: a column img or image of {bytes, path}, and perhaps classes.

All files are looked at before anything is written: they must agree on the image column and on the class.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vergence.platform.data.formats import START, image_format
from vergence.platform.data.sources.source import NO_LABEL, Packed, digest, numbered, unique_keys
from vergence.platform.data.walk import LeftOut
from vergence.platform.errors import UserError, nearest

BATCH = 64
IMAGE_COLUMNS, LABEL_COLUMN = ("img", "image"), "label"
_CURE = "--label COLUMN takes another column, --label none packs without classes"


class File(NamedTuple):
    path: Path
    metadata: pq.FileMetaData
    schema: pa.Schema


class Parquet:
    """The rows of some files that hold an image's bytes, in order."""

    def __init__(self, paths: Sequence[Path], label: str | None, known_classes: Sequence[str] | None) -> None:
        self.files = [_open(path) for path in paths]
        self.column = _image_column(self.files)
        self.label = _label_column(self.files, label, self.column)
        self.starts = np.cumsum([0, *(file.metadata.num_rows for file in self.files)])
        if self.starts[-1] == 0:
            raise UserError(f"{paths[0]}{' ...' if len(paths) > 1 else ''}: no rows, nothing to pack")
        left_out = LeftOut()
        self.rows = np.concatenate([self._rows_with_bytes(i, left_out) for i in range(len(paths))])
        if not len(self.rows):
            raise UserError(
                f"{paths[0]}: column {self.column} names {self.starts[-1]:,} images and holds the bytes of none; "
                "pack the folder that has the images"
            )
        names = [name for i in range(len(paths)) for name in self._names(i)]
        self.num, self.keys = len(self.rows), unique_keys([names[row] for row in self.rows])
        self.classes, labels = _classes(self.files, self.label, known_classes)
        self.labels = None if labels is None else labels[self.rows]
        self.notes = left_out.lines() + self._unused(label)
        sizes = [(file.path.name, file.path.stat().st_size) for file in self.files]
        self.fingerprint = digest(sizes, self.keys if label is None else [self.keys, label])

    def samples(self, start: int, stop: int) -> Iterator[Packed]:
        images = self._images(int(self.rows[start]), int(self.rows[stop - 1]))
        for number, data in zip(range(start, stop), images):
            label = -1 if self.labels is None else int(self.labels[number])
            extension = image_format(data[:START]) or "jpg"  # what is no image is found by `shards check`
            yield Packed(self.keys[number], extension, data, None if label < 0 else label)

    def _images(self, first: int, last: int) -> Iterator[bytes]:
        """Those of the rows from one to another over all files; row groups outside are not read."""
        for i, file in enumerate(self.files):
            row = int(self.starts[i])
            for group in range(file.metadata.num_row_groups):
                rows = file.metadata.row_group(group).num_rows
                if row <= last and row + rows > first:
                    values = enumerate(_bytes(file, group, self.column), row)
                    yield from (data.as_py() for at, data in values if first <= at <= last and data.is_valid)
                row += rows

    def _rows_with_bytes(self, i: int, left_out: LeftOut) -> np.ndarray:
        """Rows of one file, counted over all files; read only where the footer cannot say that none is null."""
        file, row, kept = self.files[i], 0, [np.empty(0, np.int64)]
        for group in range(file.metadata.num_row_groups):
            rows = file.metadata.row_group(group).num_rows
            valid = np.ones(rows, bool)
            if _nulls(file.metadata.row_group(group), f"{self.column}.bytes") != 0:
                valid[:] = [data.is_valid for data in _bytes(file, group, self.column)]
            for missing in np.flatnonzero(~valid) + row:
                left_out.add("rows without image bytes", f"row {missing} of {file.path.name}")
            kept.append(np.flatnonzero(valid) + row + self.starts[i])
            row += rows
        return np.concatenate(kept)

    def _names(self, i: int) -> list[str]:
        """The path of each image without its ending where the file knows it, else the number of its row."""
        file, numbers = self.files[i], range(self.starts[i], self.starts[i + 1])
        image = file.schema.field(self.column).type
        stored: list[str | None] = [None] * len(numbers)
        if image.get_field_index("path") >= 0 and _is_text(image.field("path").type):
            paths = pc.struct_field(_read(file, f"{self.column}.path"), "path")
            stored = paths.to_pylist()
        return [_stem(name or "") or f"{number:09d}" for name, number in zip(stored, numbers)]

    def _unused(self, choice: str | None) -> list[str]:
        """What is said of classes and columns."""
        columns = sorted({name for file in self.files for name in file.schema.names})
        others = [name for name in columns if name not in (self.column, self.label)]
        notes = []
        if self.label is None and choice is None:
            cure = "; --label COLUMN takes them from another" if others else ""
            notes.append(f"no classes: no column {LABEL_COLUMN}{cure}")
        elif self.labels is not None and (missing := int((self.labels < 0).sum())):
            notes.append(
                f"{missing:,} of {self.num:,} samples have no class (column {self.label} is null, empty or below 0)"
            )
        return notes + ([f"columns not used: {', '.join(others)}"] if others else [])


def _open(path: Path) -> File:
    with _reading(path) as stored:
        schema = stored.schema_arrow
        for name in {LABEL_COLUMN, *IMAGE_COLUMNS} & set(schema.names):
            if schema.names.count(name) > 1:
                raise UserError(
                    f"{path}: {schema.names.count(name)} columns are called {name}; rename all but one"
                )
        return File(path, stored.metadata, schema)


@contextmanager
def _reading(path: Path) -> Iterator[pq.ParquetFile]:
    """An open file; what pyarrow says of damaged ones is a UserError, an error of the disk stays one."""
    try:
        with path.open("rb") as stream:
            yield pq.ParquetFile(stream)
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise UserError(f"{path}: damaged, or no parquet file; fetch it again") from None


def _bytes(file: File, group: int, column: str) -> Iterator[pa.Scalar]:
    """The bytes of the images of one row group, null where there are none; a few are held at a time."""
    with _reading(file.path) as stored:
        for batch in stored.iter_batches(BATCH, row_groups=[group], columns=[f"{column}.bytes"]):
            yield from pc.struct_field(batch.column(0), "bytes")


def _nulls(group: pq.RowGroupMetaData, column: str) -> int | None:
    """Nulls of a leaf column as the footer counts them, None where it does not."""
    for i in range(group.num_columns):
        if group.column(i).path_in_schema == column:
            statistics = group.column(i).statistics
            return statistics.null_count if statistics is not None and statistics.has_null_count else None
    return None


def _stem(name: str) -> str:
    path = PurePosixPath(name)
    return str(path.with_suffix("")) if path.name else ""


def _image_column(files: Sequence[File]) -> str:
    """The column of images, the same in all files. Raises UserError."""
    first, *others = files
    there = [name for name in IMAGE_COLUMNS if name in first.schema.names]
    column = next((name for name in there if _holds_bytes(first, name)), None)
    if column is None and there:
        raise UserError(
            f"{first.path}: column {there[0]} is {first.schema.field(there[0]).type}; the bytes of an image stand in a "
            "struct(bytes, path)"
        )
    if column is None:
        names = ", ".join(first.schema.names)
        raise UserError(f"{first.path}: no column img or image of struct(bytes, path); columns: {names}")
    for file in others:
        if column not in file.schema.names or not _holds_bytes(file, column):
            raise UserError(
                f"{file.path}: no column {column} of struct(bytes, path), which {first.path.name} has; "
                "pack them one by one"
            )
    return column


def _holds_bytes(file: File, column: str) -> bool:
    kind = file.schema.field(column).type
    return pa.types.is_struct(kind) and any(
        field.name == "bytes" and (pa.types.is_binary(field.type) or pa.types.is_large_binary(field.type))
        for field in kind
    )


def _label_column(files: Sequence[File], choice: str | None, image: str) -> str | None:
    """The column of classes that all files have, or None. Raises UserError: chosen and missing, or in some only."""
    if choice == NO_LABEL:
        return None
    name = LABEL_COLUMN if choice is None else choice
    having = [file for file in files if name in file.schema.names and name != image]
    if not having:
        if choice is None:
            return None
        valid = {name for file in files for name in file.schema.names} - {image} | {NO_LABEL}
        raise UserError(f"--label {choice}: {files[0].path} has no such column; {nearest(choice, valid)}")
    if len(having) < len(files):
        without = next(file for file in files if file not in having)
        raise UserError(
            f"{without.path}: no column {name}, which {having[0].path.name} has; pack them one by one, or {_CURE}"
        )
    return name


def _classes(
    files: Sequence[File], column: str | None, known_classes: Sequence[str] | None
) -> tuple[list[str] | None, np.ndarray | None]:
    """Names of the classes, where known, and the class of each row over all files, int64, -1 for none."""
    if column is None:
        return None, None
    kinds = {file.path: _kind(file, column) for file in files}
    found = {kind for kind in kinds.values() if kind != "null"}
    if len(found) > 1:
        other = next(path for path, kind in kinds.items() if kind not in ("null", kinds[files[0].path]))
        raise UserError(
            f"{other}: column {column} holds {kinds[other]}, in {files[0].path.name} it holds "
            f"{kinds[files[0].path]}; pack them one by one, or {_CURE}"
        )
    values = [_read(file, column) for file in files]
    if found == {"words"}:
        return _words(values, known_classes)
    labels = np.concatenate([_numbers(file, column, value) for file, value in zip(files, values)])
    names = _names_of_numbers(files, column)
    if names is not None and labels.max(initial=-1) >= len(names):
        raise UserError(
            f"{files[0].path}: column {column} holds class {labels.max()}, its own list names {len(names)} classes; "
            f"{_CURE}"
        )
    return names, labels


def _kind(file: File, column: str) -> str:
    kind = file.schema.field(column).type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_null(kind):
        return "null"
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind):
        return "numbers"
    if _is_text(kind):
        return "words"
    raise UserError(f"{file.path}: column {column} is {kind}, not one whole number or word a row; {_CURE}")


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _read(file: File, column: str) -> pa.ChunkedArray:
    with _reading(file.path) as stored:
        values = stored.read(columns=[column]).column(0)
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    return values


def _numbers(file: File, column: str, values: pa.ChunkedArray) -> np.ndarray:
    """int64, -1 for null, for what is below 0, and for a float that is no number (pandas' null)."""
    if pa.types.is_floating(values.type):
        values = pc.if_else(pc.is_nan(values), None, values)
    try:
        numbers = values.cast(pa.int64())
    except pa.ArrowInvalid as error:
        raise UserError(f"{file.path}: column {column} is no class: {error}; {_CURE}") from None
    return np.maximum(np.asarray(numbers.fill_null(-1).to_numpy()), -1)


def _words(
    values: Sequence[pa.ChunkedArray], known_classes: Sequence[str] | None
) -> tuple[list[str], np.ndarray]:
    words = [value.cast(pa.large_string()) for value in values]
    own = {word for value in words for word in value.unique().to_pylist() if word}
    classes = numbered(sorted(own), known_classes)
    order = pa.array(classes, pa.large_string())
    labels = [pc.index_in(value, value_set=order).fill_null(-1).to_numpy() for value in words]
    return classes, np.concatenate(labels).astype(np.int64)


def _names_of_numbers(files: Sequence[File], column: str) -> list[str] | None:
    """The class names that the files' own description gives; they must agree."""
    known = [(file, names) for file in files if (names := _described(file, column)) is not None]
    for file, names in known:
        if names != known[0][1]:
            raise UserError(
                f"{file.path}: column {column} has other class names than in {known[0][0].path.name}; pack them one by "
                f"one into folders of their own, or {_CURE}"
            )
    return known[0][1] if known else None


def _described(file: File, column: str) -> list[str] | None:
    try:
        about: Any = json.loads((file.schema.metadata or {}).get(b"huggingface", b"{}"))
        names = about["info"]["features"][column]["names"]
    except (ValueError, KeyError, TypeError):  # none, or of another program
        return None
    return names if isinstance(names, list) and all(isinstance(name, str) for name in names) else None
