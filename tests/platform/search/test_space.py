"""Domains of a search: what is read, what is refused, and what is drawn."""

import numpy as np
import pytest

from vergence.platform.errors import UserError
from vergence.platform.search.space import Choice, Range, drawn, grid, parse_space


def test_each_kind_of_domain_is_read() -> None:
    space = parse_space(
        {
            "method.momentum": {"choice": [0, 0.9, "x", {"peak": 1}]},
            "optim.lr": {"loguniform": [0.03, 1]},
            "views.0.hue": {"uniform": [0, 0.2]},
            "method.embed_dim": {"integer": [16, 64]},
        },
        "s.yaml",
    )
    assert space["method.momentum"] == Choice((0, 0.9, "x", {"peak": 1}))
    assert space["optim.lr"] == Range("loguniform", 0.03, 1)
    assert space["views.0.hue"].probes == (0, 0.2)
    assert space["method.embed_dim"] == Range("integer", 16, 64)


@pytest.mark.parametrize(
    ("domain", "reason"),
    [
        ({"loguniform": [0, 1]}, "loguniform needs low > 0, got 0"),
        ({"uniform": [1, 1]}, "low < high"),
        ({"uniform": [1]}, "takes \\[low, high\\]"),
        ({"uniform": [False, True]}, "takes \\[low, high\\]"),
        ({"integer": [0.5, 2]}, "whole numbers"),
        ({"choices": [1, 2]}, "did you mean choice"),
        ({"choice": []}, "takes a list"),
        ({"choice": 3}, "takes a list"),
        ({"choice": [1, 2, 1]}, "stands twice"),
        ({"choice": [1], "uniform": [0, 1]}, "a domain is one of"),
        ([1, 2], "a domain is one of"),
    ],
)
def test_a_wrong_domain_is_refused_by_path(domain: object, reason: str) -> None:
    with pytest.raises(UserError, match=f"s.yaml: space: optim.lr: .*{reason}"):
        parse_space({"optim.lr": domain}, "s.yaml")


def test_a_search_without_a_space_is_refused() -> None:
    wrong: tuple[object, ...] = (None, {}, [])
    for raw in wrong:
        with pytest.raises(UserError, match="a mapping of settings to domains"):
            parse_space(raw, "s.yaml")


def test_a_grid_has_every_combination_once() -> None:
    space = parse_space({"a": {"choice": [1, 2]}, "b": {"choice": ["x", "y", "z"]}}, "s")
    found = grid(space)
    assert found[:4] == [{"a": 1, "b": "x"}, {"a": 1, "b": "y"}, {"a": 1, "b": "z"}, {"a": 2, "b": "x"}]
    assert len({tuple(point.values()) for point in found}) == 6


def test_a_grid_of_a_range_is_refused() -> None:
    with pytest.raises(UserError, match="b is uniform from 0 to 1; give it a choice"):
        grid(parse_space({"a": {"choice": [1]}, "b": {"uniform": [0, 1]}}, "s"))


def test_draws_are_functions_of_seed_and_number_and_fill_the_domains() -> None:
    space = parse_space(
        {"log": {"loguniform": [0.001, 1]}, "int": {"integer": [1, 3]}, "pick": {"choice": ["x", "y"]}}, "s"
    )
    points = [drawn(space, 0, number) for number in range(300)]
    assert points[7] == drawn(space, 0, 7)
    assert points[7] != drawn(space, 1, 7)
    logs = np.array([point["log"] for point in points])
    assert logs.min() >= 0.001
    assert logs.max() <= 1
    assert 0.4 < (logs < 0.001**0.5).mean() < 0.6  # half of them below the geometric mean
    assert {point["int"] for point in points} == {1, 2, 3}
    assert {point["pick"] for point in points} == {"x", "y"}


def test_a_rounded_number_stays_inside() -> None:
    domain = Range("uniform", 0.1234564, 0.3)
    assert domain.rounded(0.1234564) == 0.1234564
    assert domain.rounded(0.234567891) == 0.234568


def test_axes_by_powers() -> None:
    assert Choice((0.02, 0.1, 2)).is_log
    assert not Choice((0, 0.9, 0.99)).is_log
    assert not Choice((0.1, 0.2)).is_log
    assert not Choice(("x", "y")).is_log
