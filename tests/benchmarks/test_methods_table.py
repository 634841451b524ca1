"""The arithmetic of the table of methods, and that its plan fits the recipes; nothing is trained here."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import methods_table
from benchmarks.experiments import Ledger, Sets, Work, _lines
from benchmarks.methods_table import (
    BEGIN,
    END,
    KNN,
    LINEAR,
    SUFFIX,
    Change,
    assignments,
    between,
    chosen,
    rows,
    table,
)
from vergence.pipelines.recipe import load_recipe
from vergence.platform import yaml

PLAN = yaml.read(methods_table.PLAN)
# What recipes have otherwise than their trials, which are of 2 epochs over 6,000 images: a teacher's memory, clusters, and
# of SimCLR what its figures in the README were measured with.
OWN = {
    "byol": {"optim.lr", "method.momentum"},
    "mocov3": {"optim.lr", "method.momentum"},
    "mocov3_vit": {"method.momentum"},
    "deep_cluster": {"method.clusters"},
    "simclr": {"optim.lr", "method.temperature"},
}


def figures(knn: float, linear: float = 0.4, rank: float = 20.0) -> dict[str, Any]:
    return {KNN: knn, LINEAR: linear, "effective_rank": rank}


def report(*after: float) -> dict[str, Any]:
    return {
        "date": "2026-11-26",
        "machine": {"cores": 2},
        "about": {
            "budget": {"images": 10_000, "epochs": 5, "trial_epochs": 2, "holdout": 0.4},
            "common": ["batch.global=128"],
        },
        "raw pixels": figures(0.391),
        "methods": {
            "simclr": {
                "title": "SimCLR",
                "year": 2020,
                "trials": [{}] * 4,
                "untrained": [figures(0.28), figures(0.29), figures(0.30)],
                "runs": [
                    {
                        **figures(each, 0.45, 40),
                        "images_per_cpu_s": 250.0,
                        "on": "2 cores of a CPU",
                        "jobs": 2,
                    }
                    for each in after
                ],
            }
        },
    }


def test_plan_names_recipes_that_are_there_and_settings_that_they_take() -> None:
    there = rows(PLAN)
    assert set(PLAN["recipes"]) | set(PLAN["seeds"]) <= set(there)
    for row in there.values():
        trials = list(row.trials())
        assert len(trials) == 4
        digests = {
            load_recipe(row.recipe, [*PLAN["common"], *row.settings, *assignments(trial)]).digest()
            for trial in trials
        }
        assert len(digests) == 4, row.name


def test_recipe_without_a_grid_gets_four_learning_rates() -> None:
    row = rows({**PLAN, "recipes": {}})["byol"]
    assert list(row.trials()) == [{"optim.lr": pytest.approx(0.12 * factor)} for factor in (0.5, 1, 2, 4)]


def test_the_best_trial_is_of_the_highest_score_and_none_of_those_that_failed() -> None:
    trials: list[dict[str, Any]] = [
        {"settings": {"optim.lr": 1}, "failed": "not finite"},
        {"settings": {"optim.lr": 2}, "score": 0.3},
        {"settings": {"optim.lr": 3}, "score": 0.4},
        {"settings": {"optim.lr": 4}, "score": 0.4},
    ]
    assert chosen(trials) == {"optim.lr": 3}
    with pytest.raises(ValueError, match="not finite"):
        chosen(trials[:1])


@pytest.mark.parametrize(("after", "above"), [((0.311,), True), ((0.309,), False), ((0.30, 0.33), True)])
def test_row_is_above_only_by_more_than_the_spread(after: tuple[float, ...], above: bool) -> None:
    """Untrained .28 to .30: mean .29, spread .02."""
    assert Change((0.28, 0.29, 0.30), after).is_above is above
    assert ("✗" in str(Change((0.28, 0.29, 0.30), after))) is not above


def test_table_tells_change_rank_and_speed() -> None:
    text = table(report(0.40, 0.42, 0.41))
    assert "| raw pixels | | .391 | .400 | | |" in text
    knn, linear = (
        ".290 (.280 to .300) → **.410 (.400 to .420)**",
        ".400 (.400 to .400) → **.450 (.450 to .450)**",
    )
    assert f"| SimCLR | 2020 | {knn} | {linear} | 20 → 40 | 250 |" in text
    assert "4 trials of 2 epochs over 60% of the images" in text


def test_table_replaces_what_is_between_the_marks_and_nothing_else() -> None:
    page = f"before\n{BEGIN}\nold\n{END}\nafter\n"
    once = between(page, "new")
    assert once == f"before\n{BEGIN}\nnew\n{END}\nafter\n" == between(once, "new")
    with pytest.raises(ValueError, match="marks"):
        between("no marks", "new")


def test_readme_has_the_marks() -> None:
    assert "new" in between((Path(__file__).parents[2] / "README.md").read_text(), "new")


def test_ledger_goes_on_after_a_kill_in_the_middle_of_a_line(tmp_path: Path, monkeypatch: Any) -> None:
    """What is known is not done again: no process is started for it."""
    monkeypatch.setattr(Work, "key", property(lambda work: f"{work.kind} {work.recipe}"))
    path = tmp_path / "ledger.jsonl"
    path.write_text('{"key": "trial a", "score": 0.3}\n{"key": "trial b", "sco')
    asked = Work("trial", "a", (), Sets("train", "test"))
    with Ledger(path, jobs=1) as ledger:
        assert ledger.result(asked)["score"] == 0.3
        ledger._keep("trial c", asked._replace(recipe="c"), {"score": 0.5})
    assert [line["key"] for line in _lines(path)] == ["trial a", "trial c"]


def test_recipes_have_what_their_trials_chose() -> None:
    kept = json.loads(Path("benchmarks/results/methods.json").read_text())
    for name, found in kept["methods"].items():
        best = {
            setting: value for setting, value in found["best"].items() if setting not in OWN.get(name, ())
        }
        assert load_recipe(name + SUFFIX, assignments(best)) == load_recipe(name + SUFFIX), name
