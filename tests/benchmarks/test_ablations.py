"""The plan of the ablations fits the recipes, and the page tells what was found; nothing is trained here."""

import json
import math
from pathlib import Path
from typing import Any

from benchmarks import ablations, methods_table
from benchmarks.ablations import draw, page, section, trained_on
from benchmarks.methods_table import KNN, LINEAR, rows
from vergence.methods.catalog import METHODS
from vergence.methods.method import DataFacts
from vergence.pipelines.recipe import build_method, load_recipe
from vergence.platform import yaml
from vergence.platform.train.optim.groups import parameter_groups

PLAN = yaml.read(ablations.PLAN)["ablations"]
OF_EVERY_METHOD = ("grad_norm", "grad_norm_first")  # the loop tells them


def figures(knn: float) -> dict[str, Any]:
    return {KNN: knn, LINEAR: knn + 0.1, "h_std": 0.5, "effective_rank": 20.0}


FOUND: dict[str, Any] = {
    "title": "DINO without its parts",
    "recipe": "dino",
    "source": "a paper",
    "metrics": ["kl"],
    "ln_k": "outputs",
    "base": ["method.outputs=2048", "method.outputs=512"],
    "untrained": [figures(0.28), figures(0.30)],
    "variants": {
        "whole": {"paper": 70.2, "on": "a GPU", **figures(0.4), "metrics": {"kl": 0.25}},
        "no centring": {"paper": "collapse", "on": "a GPU", "failed": "loss is not finite"},
        "by nobody": {"paper": None, "on": "a GPU", **figures(0.2), "metrics": {"kl": 0.0}},
    },
}


def test_every_variant_is_a_recipe_of_its_own_that_can_be_built() -> None:
    table = yaml.read(methods_table.PLAN)
    there = rows(table)
    for name, asked in PLAN.items():
        row, digests = there[asked["recipe"]], set()
        for variant in asked["variants"].values():
            settings = [*table["common"], *asked.get("settings", ()), *variant.get("settings", ())]
            recipe = load_recipe(row.recipe, settings)
            method = build_method(recipe, DataFacts(1024, 1024, recipe.epochs))
            assert parameter_groups(method, recipe.optim, 0.1, recipe.schedule), (
                name
            )  # each group matches something
            digests.add(recipe.digest())
        assert len(digests) == len(asked["variants"]), name


def test_metrics_that_the_page_tells_are_told_by_the_methods() -> None:
    for asked in (each for each in PLAN.values() if "metrics" in each):
        name = load_recipe(asked["recipe"] + methods_table.SUFFIX).method.name
        module = __import__(METHODS[name][1].__module__, fromlist=["Losses"])
        assert set(asked["metrics"]) <= {*module.Losses._fields, *OF_EVERY_METHOD}


def test_section_tells_ours_beside_the_paper() -> None:
    lines = section(FOUND)
    assert lines[0] == "| variant | kNN | linear | std | rank | kl | paper |"
    assert lines[2].startswith("| untrained, mean of 2 | 0.290 | 0.390 | 0.50 | 20 |")
    assert lines[3] == "| whole | 0.400 | 0.500 | 0.50 | 20 | 0.25 | 70.2 |"
    assert lines[4] == "| no centring | not finite | | | | nan | collapse |"
    assert lines[5].endswith("| 0 | — |")
    assert lines[-1] == f"ln K = {math.log(512):.3g}."
    assert {line.count("|") for line in lines[:-2]} == {8}


def test_where_each_variant_was_trained_is_told() -> None:
    whole, other, _ = FOUND["variants"].values()
    both = {"variants": {"whole": whole, "other": other | {"on": "2 cores"}}}
    assert trained_on(both) == "Trained on a GPU (whole) and 2 cores (other)."


def test_page_shows_each_ablation_with_its_picture(tmp_path: Path) -> None:
    report = {"date": "2026-11-26", "budget": {"images": 10_000, "epochs": 5}, "ablations": {"dino": FOUND}}
    text = page(report)
    assert "![DINO without its parts](ablations/dino.png)" in text
    assert "Trained on a GPU." in text
    left_out = text.partition("## Not run yet")[2]
    assert PLAN["simsiam"]["title"] in left_out
    assert PLAN["dino"]["title"] not in left_out
    draw(FOUND, tmp_path / "ablations" / "dino.png")
    assert (tmp_path / "ablations" / "dino.png").read_bytes().startswith(b"\x89PNG")


def test_every_ablation_that_was_run_is_read_beside_the_paper() -> None:
    kept = json.loads(Path("benchmarks/results/ablations.json").read_text())["ablations"]
    told = Path("docs/ablations.md").read_text()
    for name, one in kept.items():
        assert set(one["variants"]) == set(PLAN[name]["variants"]), name
        assert f"\n{PLAN[name]['reading']}\n" in told, name
