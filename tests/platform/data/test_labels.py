import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from object_servers import Answer, Faults, web_server

from vergence.platform.data.labels import Classes, by_name, class_text, number, read_names, why_no_class
from vergence.platform.errors import UserError


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"3", "3"),
        (b" 7\r\n", "7"),
        (b"\xef\xbb\xbfcat\n", "cat"),
        (b"Egyptian cat", "Egyptian cat"),
        ("größer".encode(), "größer"),
        (b"caf\xe9", r"caf\xe9"),
        (b"0.5", "0.5"),
        (b"x" * 200, "x" * 200),
    ],
)
def test_a_class_is_one_line(data: bytes, text: str) -> None:
    assert class_text(data) == text
    assert why_no_class(data) is None


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (None, "no class (.cls)"),
        (b"", "the class (.cls) is empty"),
        (b"\xef\xbb\xbf \n", "the class (.cls) is empty"),
        (b"-1", "the class (.cls) is -1, below 0"),
        (b"3\n5", r"the class (.cls) is not one line of at most 200 bytes: 3\n5"),
        (b"\x80\x04\x00", r"the class (.cls) is not one line of at most 200 bytes: \x80\x04\x00"),
        (b"x" * 201, "the class (.cls) is not one line of at most 200 bytes: " + "x" * 40),
    ],
)
def test_what_is_no_class_says_why(data: bytes | None, reason: str) -> None:
    assert why_no_class(data) == reason
    assert class_text(data) is None


def numbered(*texts: str | None) -> Classes:
    return number(pa.array(texts, pa.string()).dictionary_encode())


def test_whole_numbers_stand_for_themselves() -> None:
    labels, names, mixed = numbered("3", "10", None, "007", "3")
    assert (labels.tolist(), names, mixed) == ([3, 10, -1, 7, 3], None, None)
    assert labels.dtype == np.int64


def test_words_are_numbered_in_sorted_order() -> None:
    labels, names, mixed = numbered("dog", None, "cat", "dog", "Ant")
    assert (labels.tolist(), names, mixed) == ([2, -1, 1, 2, 0], ["Ant", "cat", "dog"], None)


def test_one_word_makes_words_of_all_and_that_is_told() -> None:
    labels, names, mixed = numbered("1", "10", "cat", "2", None, "10")
    assert (labels.tolist(), names) == ([0, 1, 3, 2, -1, 1], ["1", "10", "2", "cat"])
    assert mixed == "classes: 4 are numbers (1, ...) and 1 are words (cat, ...), so all are taken for words"
    assert numbered("9" * 30, "1").names == ["1", "9" * 30]  # too large for int64


def test_no_classes_at_all() -> None:
    labels, names, mixed = numbered(None, None)
    assert (labels.tolist(), names, mixed) == ([-1, -1], None, None)


def test_names_are_read_where_all_folders_agree(tmp_path: Path) -> None:
    folders = [str(tmp_path / name) for name in "abc"]
    for folder in folders:
        Path(folder).mkdir()
    assert read_names(folders) is None
    for folder in folders[:2]:
        Path(folder, "classes.json").write_text(json.dumps(["x", "y"]))
    assert read_names(folders[:2]) == ["x", "y"]
    assert read_names(folders) is None
    Path(folders[2], "classes.json").write_text(json.dumps(["y", "x"]))
    with pytest.raises(UserError, match=r"c/classes\.json names other classes than .*a/classes\.json"):
        read_names(folders)
    Path(folders[2], "classes.json").write_text(json.dumps({"x": 0}))  # another program's
    assert read_names(folders) is None
    Path(folders[2], "classes.json").write_text("[")
    with pytest.raises(UserError, match=r"c/classes\.json: damaged, not JSON"):
        read_names(folders)


def test_names_that_may_not_be_asked_for_are_none(tmp_path: Path) -> None:
    """As of public buckets: who may not list is refused what is not there."""
    faults = Faults()
    with web_server(tmp_path, faults) as address:
        assert read_names([address]) is None
        faults.says = Answer(403, {}, b"")
        assert read_names([address]) is None


def test_labels_are_renumbered_by_name() -> None:
    labels, missing = by_name(np.array([0, 1, 2, 1]), ["cat", "dog", "fox"], ["dog", "ant", "cat"])
    assert (labels.tolist(), missing) == ([2, 0, -1, 0], {"fox": 1})
    labels, missing = by_name(
        np.array([1, 1]), ["cat", "dog"], ["dog"]
    )  # a class that nobody has needs no place
    assert (labels.tolist(), missing) == ([0, 0], {})
