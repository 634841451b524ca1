import time

import pytest

from vergence.platform.data.sources.source import numbered, only_none, unique_keys
from vergence.platform.errors import UserError


def test_keys_are_unique_one_line_and_without_dots() -> None:
    names = [
        "a",
        "a.b",
        "a_b",
        "a-2",
        "a",
        "a",
        "__x__/y",
        "two\nlines",
        b"caf\xe9".decode("utf-8", "surrogateescape"),
    ]
    assert unique_keys(names) == [
        "a",
        "a_b",
        "a_b-2",
        "a-2",
        "a-3",
        "a-4",
        "_x__/y",
        r"two\nlines",
        r"caf\xe9",
    ]


def test_keys_of_one_name_cost_linear_time() -> None:
    """20,000 took 40 s when each looked for its number from 2 on; now 200,000 take some tenths."""
    started_s = time.process_time()
    keys = unique_keys(["image"] * 200_000)
    assert time.process_time() - started_s < 5
    assert keys[0] == "image"
    assert keys[1:] == [f"image-{i}" for i in range(2, 200_001)]


def test_known_numbers_are_kept_where_they_name_all() -> None:
    assert numbered(["b", "a", "b"], None) == ["a", "b"]
    assert numbered(["b"], ["c", "b"]) == ["c", "b"]
    assert numbered(["b", "x"], ["c", "b"]) == ["b", "x"]


def test_where_there_is_no_column_only_none_can_be_chosen() -> None:
    assert only_none(None, "photos", "its folders are the classes")
    assert not only_none("none", "photos", "its folders are the classes")
    with pytest.raises(UserError, match=r"--label fine: photos has no columns; its folders are the classes"):
        only_none("fine", "photos", "its folders are the classes")
