"""The search's file: mistakes are named, budgets are added up."""

from typing import Any

import pytest

from vergence.platform.errors import UserError
from vergence.platform.search.config import SearchConfig, assigned, parse_search

GRID: dict[str, Any] = {
    "space": {"method.temperature": {"choice": [0.1, 0.2, 0.5]}, "optim.lr": {"choice": [0.1, 0.2, 0.3]}},
    "budget": {"epochs": 9},
}


def config(**changes: Any) -> SearchConfig:
    return parse_search({**GRID, **changes}, "s.yaml")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"objective": "loss"}, "losses at another temperature or weight are other functions"),
        ({"objective": "kn"}, "objective: no such objective .did you mean knn"),
        ({"algoritm": "grid"}, "algoritm is not a setting .did you mean algorithm"),
        ({"algorithm": "tpee"}, "algorithm: got 'tpee' .did you mean tpe"),
        ({"budget": {"epoch": 9}}, "budget.epoch is not a setting .did you mean epochs"),
        ({"budget": {}}, "budget.epochs is missing"),
        ({"budget": {"epochs": 0}}, "budget.epochs: input should be greater than 0, got 0"),
        ({"budget": {"epochs": 9, "trials": 4}}, "the grid has 9 combinations"),
        ({"algorithm": "random"}, "budget.trials is missing; random needs"),
        ({"algorithm": "tpe", "scheduler": {"name": "halving"}, "budget": {"epochs": 9, "trials": 9}}, "tpe proposes"),
        ({"scheduler": {"name": "asha", "first": 9}}, "is not below budget.epochs=9"),
        ({"scheduler": {"name": "asha", "facter": 2}}, "scheduler.facter is not a setting .did you mean factor"),
        ({"space": {"optim.lr": {"uniform": [0, 1]}}}, "algorithm: grid tries every value"),
    ],
)  # fmt: skip
def test_a_mistake_is_named(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        config(**changes)


def test_what_is_no_search_is_refused() -> None:
    with pytest.raises(UserError, match="a search is a mapping of settings, got list"):
        parse_search([1], "s.yaml")


def test_a_grid_without_scheduler_trains_everything_in_full() -> None:
    whole = config()
    assert (whole.num_trials, whole.rungs) == (9, [9])
    assert whole.epochs_at_most == whole.epochs_at_least == 81


def test_halving_of_nine_over_one_three_nine_costs_less_than_a_third() -> None:
    halving = config(scheduler={"name": "halving"})
    assert halving.rungs == [1, 3, 9]
    assert [halving.survivors(rung) for rung in range(3)] == [9, 3, 1]
    assert halving.epochs_at_most == 9 * 1 + 3 * 2 + 1 * 6
    assert halving.epochs_at_most <= 0.3 * 81


def test_asha_costs_something_between() -> None:
    asha = config(scheduler={"name": "asha", "first": 2, "factor": 2})
    assert asha.rungs == [2, 4, 8, 9]
    assert (asha.epochs_at_least, asha.epochs_at_most) == (9 + 8 * 2, 81)


def test_a_random_search_knows_its_trials_and_tpe_does_not() -> None:
    drawn = config(algorithm="random", budget={"epochs": 9, "trials": 4})
    assert len(drawn.planned()) == 4
    assert drawn.planned() == drawn.planned()
    assert config(algorithm="tpe", budget={"epochs": 9, "trials": 4}).planned() == []


def test_only_the_number_of_trials_at_a_time_may_change() -> None:
    one, two = config(budget={"epochs": 9, "concurrent": 1}), config(budget={"epochs": 9, "concurrent": 2})
    assert one.identity() == two.identity()
    assert one.identity() != config(budget={"epochs": 10}).identity()


def test_values_are_put_where_the_paths_lead_and_the_recipe_stays_as_it_was() -> None:
    raw = {"optim": {"lr": 0.1}, "views": [{"hue": 0.1}, {"hue": 0.2}]}
    found = assigned(raw, {"optim.lr": 0.5, "views.1.hue": 0.0, "optim.new": [1]})
    assert found == {"optim": {"lr": 0.5, "new": [1]}, "views": [{"hue": 0.1}, {"hue": 0.0}]}
    assert raw["optim"] == {"lr": 0.1}


@pytest.mark.parametrize("path", ["optim.lr.x", "views.2.hue", "views.first.hue", "views.first", "a.b"])
def test_a_path_that_leads_nowhere_is_refused(path: str) -> None:
    with pytest.raises(UserError, match=f"{path} does not lead to a setting"):
        assigned({"optim": {"lr": 0.1}, "views": [{"hue": 0.1}]}, {path: 1})
