from typing import Any

import pytest

from vergence.platform import yaml
from vergence.platform.errors import UserError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1.0e-4", 1e-4),
        ("-3", -3),
        (".5", 0.5),
        ("on", "on"),
        ("no", "no"),
        ("010", "010"),
        ("1:30", "1:30"),
        ("true", True),
        ("null", None),
        ("{a: [1, 2e3]}", {"a": [1, 2000.0]}),
    ],
)
def test_values_are_what_people_mean(text: str, value: Any) -> None:
    assert yaml.parse(text, "here") == value
    assert type(yaml.parse(text, "here")) is type(value)


def test_repeated_key_is_refused_with_its_line() -> None:
    with pytest.raises(UserError, match="here: line 2: the key 'lr' stands twice"):
        yaml.parse("lr: 1\nlr: 2", "here")


@pytest.mark.parametrize(
    "value", ["1e5", "010", "true", "", "on", "x: y", 1e-6, 5.0, 1e22, None, [1, 2.5], {"a": []}]
)
def test_dump_is_read_back_to_the_same_value(value: Any) -> None:
    assert yaml.parse(yaml.dump({"v": value}), "here") == {"v": value}


def test_broken_text_is_one_line_with_place() -> None:
    with pytest.raises(UserError, match="here: line 1"):
        yaml.parse("a: [1, 2", "here")
