"""Parquet files as people have them: what is taken, what is said, what is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from shard_files import png

from vergence.platform.data.sources.parquet import Parquet
from vergence.platform.errors import UserError

PNGS = [png(np.full((2, 2, 3), i, np.uint8)) for i in range(12)]
IMAGES = [{"bytes": data, "path": f"{i}.png"} for i, data in enumerate(PNGS)]


def write(
    path: Path, names: list[str] | None = None, column: str = "label", row_group_size: int = 4, **columns: Any
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table(columns)
    if names:
        about = {"info": {"features": {column: {"names": names}}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(about)})
    pq.write_table(table, path, row_group_size=row_group_size)
    return path


def opened(*paths: Path, label: str | None = None, known: list[str] | None = None) -> Parquet:
    return Parquet(paths, label, known)


def labels(source: Parquet) -> list[int | None]:
    return [sample.label for sample in source.samples(0, source.num)]


def refused(message: str, *paths: Path, label: str | None = None) -> None:
    with pytest.raises(UserError, match=message) as error:
        Parquet(paths, label, None)
    assert "\n" not in str(error.value)


NUMBERS = [i % 3 for i in range(12)]


@pytest.mark.parametrize("order", ["with, without", "without, with"])
def test_files_that_disagree_on_the_class_are_refused_in_either_order(tmp_path: Path, order: str) -> None:
    """The facts of one file held for all: labels were dropped in silence, or a traceback."""
    one = write(tmp_path / "with.parquet", image=IMAGES, label=NUMBERS)
    other = write(tmp_path / "without.parquet", image=IMAGES)
    paths = (one, other) if order == "with, without" else (other, one)
    refused(r"without\.parquet: no column label, which with\.parquet has; .*--label none", *paths)
    assert opened(*paths, label="none").num == 24


def test_files_that_disagree_on_a_type_name_or_image_are_refused(tmp_path: Path) -> None:
    numbers = write(tmp_path / "numbers.parquet", image=IMAGES, label=NUMBERS, names=["x", "y", "z"])
    words = write(tmp_path / "words.parquet", image=IMAGES, label=["a"] * 12)
    refused(r"words\.parquet: column label holds words, in numbers\.parquet it holds numbers", numbers, words)
    others = write(tmp_path / "others.parquet", image=IMAGES, label=NUMBERS, names=["x", "z", "y"])
    refused(r"others\.parquet: column label has other class names than in numbers\.parquet", numbers, others)
    plain = write(tmp_path / "plain.parquet", image=IMAGES, label=pa.array(NUMBERS, pa.int8()))
    assert opened(numbers, plain).classes == ["x", "y", "z"]
    img = write(tmp_path / "img.parquet", img=IMAGES, label=NUMBERS)
    refused(
        r"img\.parquet: no column image of struct\(bytes, path\), which numbers\.parquet has", numbers, img
    )


def test_files_without_bytes_or_rows_are_refused(tmp_path: Path) -> None:
    links = write(tmp_path / "links.parquet", image=[{"src": "a.png", "height": 3}] * 4)
    refused(
        r"links\.parquet: column image is struct<src: string, height: int64>; the bytes of an image", links
    )
    text = write(tmp_path / "text.parquet", image=["a.png"])
    refused(r"text\.parquet: column image is string; the bytes of an image", text)
    empty = write(
        tmp_path / "empty.parquet", image=pa.array([], pa.struct({"bytes": pa.binary(), "path": pa.string()}))
    )
    refused(r"empty\.parquet: no rows", empty)
    some = write(tmp_path / "some.parquet", image=IMAGES)
    assert opened(empty, some).num == 12
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    names = write(tmp_path / "names.parquet", image=pa.array([{"bytes": None, "path": "a.png"}] * 3, kind))
    refused(r"names\.parquet: column image names 3 images and holds the bytes of none", names)


@pytest.mark.parametrize("statistics", [True, False])
def test_rows_without_bytes_are_left_out_counted_and_named(tmp_path: Path, statistics: bool) -> None:
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    images = [
        None if i == 7 else {"bytes": None, "path": "a"} if i == 9 else image
        for i, image in enumerate(IMAGES)
    ]
    table = pa.table({"image": pa.array(images, kind), "label": NUMBERS})
    path = tmp_path / "null.parquet"
    pq.write_table(table, path, row_group_size=4, write_statistics=statistics)
    source = opened(path)
    assert source.notes == [
        "left out: rows without image bytes (2: row 7 of null.parquet, row 9 of null.parquet)"
    ]
    kept = [i for i in range(12) if i not in (7, 9)]
    for start, stop in ((0, 10), (3, 8), (7, 10), (9, 10)):
        found = [(sample.key, sample.data, sample.label) for sample in source.samples(start, stop)]
        assert found == [(str(i), PNGS[i], i % 3) for i in kept[start:stop]]


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())]
)
def test_words_are_numbered_in_sorted_order_over_all_files(tmp_path: Path, kind: pa.DataType) -> None:
    one = write(
        tmp_path / "1.parquet", image=IMAGES, label=pa.array(["dog", "cat"] * 6, pa.string()).cast(kind)
    )
    two = write(
        tmp_path / "2.parquet", image=IMAGES, label=pa.array(["ant", "", None] * 4, pa.string()).cast(kind)
    )
    source = opened(one, two)
    assert source.classes == ["ant", "cat", "dog"]
    assert labels(source) == [2, 1] * 6 + [0, None, None] * 4
    assert source.notes == ["8 of 24 samples have no class (column label is null, empty or below 0)"]
    known = ["zebra", "ant", "dog", "cat"]
    assert opened(one, known=known).classes == known
    assert labels(opened(one, known=known)) == [2, 3] * 6


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (pa.array([0.0, 1.0, None] * 4), [0, 1, None] * 4),
        (pa.array([0.0, 1.0, float("nan")] * 4), [0, 1, None] * 4),  # as pandas writes missing numbers
        (pa.array([True, False] * 6), [1, 0] * 6),
        (pa.array([-1, 5] * 6, pa.int8()), [None, 5] * 6),
        (pa.array([2, 3] * 6, pa.uint64()), [2, 3] * 6),
        (pa.nulls(12), [None] * 12),
        (pa.array([4, 7] * 6).dictionary_encode(), [4, 7] * 6),
    ],
)
def test_numbers_of_any_type_are_classes(
    tmp_path: Path, values: pa.Array, expected: list[int | None]
) -> None:
    assert labels(opened(write(tmp_path / "a.parquet", image=IMAGES, label=values))) == expected


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([[1, 2]] * 12, r"column label is list<element: int64>, not one whole number or word a row"),
        ([{"a": 1}] * 12, r"column label is struct<a: int64>, not one"),
        ([0.5] * 12, r"column label is no class: Float value 0\.5\d* was truncated"),
        (pa.array([2**63] * 12, pa.uint64()), r"column label is no class: Integer value"),
    ],
)
def test_what_is_no_class_is_refused_with_the_cure(tmp_path: Path, values: Any, message: str) -> None:
    path = write(tmp_path / "a.parquet", image=IMAGES, label=values)
    refused(message + ".*--label COLUMN takes another column, --label none packs without classes", path)
    assert labels(opened(path, label="none")) == [None] * 12


def test_a_class_beyond_the_named_ones_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", image=IMAGES, label=NUMBERS, names=["x", "y"])
    refused("column label holds class 2, its own list names 2 classes", path)


def test_the_column_of_classes_can_be_chosen_and_the_others_are_told(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.parquet",
        image=IMAGES,
        fine_label=NUMBERS,
        text=["t"] * 12,
        names=["x", "y", "z"],
        column="fine_label",
    )
    source = opened(path)
    assert source.notes == [
        "no classes: no column label; --label COLUMN takes them from another",
        "columns not used: fine_label, text",
    ]
    chosen = opened(path, label="fine_label")
    assert (chosen.classes, labels(chosen), chosen.notes) == (
        ["x", "y", "z"],
        NUMBERS,
        ["columns not used: text"],
    )
    assert opened(path, label="none").notes == ["columns not used: fine_label, text"]
    assert len({chosen.fingerprint, source.fingerprint}) == 2
    refused(
        r"--label fine_labl: .*a\.parquet has no such column; did you mean fine_label\? valid: fine_label, none, text",
        path,
        label="fine_labl",
    )


@pytest.mark.parametrize(
    "stored", [None, "", ".", "/", "a/", "./a", "../a", "/abs/a.png", "C:\\x.png", "a\0b.png"]
)
def test_every_stored_name_gives_a_key_that_an_index_finds(tmp_path: Path, stored: str | None) -> None:
    from vergence.platform.data.index import open_index
    from vergence.platform.data.shards import pack

    path = write(tmp_path / "a.parquet", image=[{"bytes": PNGS[0], "path": stored}, IMAGES[1]])
    assert pack(path, tmp_path / "out").num_samples == 2
    index = open_index(tmp_path / "out", tmp_path / "cache")
    assert [index.key(i) for i in range(len(index))] == opened(path).keys


def test_file_names_that_are_no_utf8(tmp_path: Path) -> None:
    path = tmp_path / b"caf\xe9.parquet".decode("utf-8", "surrogateescape")
    write(tmp_path / "a.parquet", image=IMAGES, label=NUMBERS).rename(path)
    assert labels(opened(path)) == NUMBERS


def test_a_file_that_is_damaged_inside_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(
        pa.table({"image": IMAGES, "label": ["a", "b"] * 6}), path, compression="gzip", row_group_size=4
    )
    whole, middle = path.read_bytes(), pq.read_metadata(path).row_group(1).column(0).data_page_offset
    path.write_bytes(whole[:middle] + bytes(200) + whole[middle + 200 :])
    with pytest.raises(UserError, match=r"a\.parquet: damaged, or no parquet file; fetch it again"):
        list(opened(path).samples(0, 12))


@pytest.mark.parametrize(
    "about", ["not json", "null", '{"info": null}', '{"info": {"features": {"label": [1]}}}']
)
def test_a_description_of_another_program_is_no_fault(tmp_path: Path, about: str) -> None:
    table = pa.table({"image": IMAGES, "label": NUMBERS}).replace_schema_metadata({"huggingface": about})
    pq.write_table(table, tmp_path / "a.parquet")
    assert opened(tmp_path / "a.parquet").classes is None


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    table = pa.Table.from_arrays(
        [pa.array(IMAGES), pa.array(NUMBERS), pa.array(NUMBERS)], ["image", "label", "label"]
    )
    pq.write_table(table, tmp_path / "a.parquet")
    refused(r"a\.parquet: 2 columns are called label", tmp_path / "a.parquet")
