import pytest

from vergence.pipelines.recipe import Recipe, flatten, load_recipe
from vergence.pipelines.settings import commented, of_method, of_recipe
from vergence.pipelines.shipped import shipped
from vergence.platform import yaml


@pytest.mark.parametrize(
    ("path", "kind", "default"),
    [
        ("optim.name", "sgd | adamw | lars", "sgd"),
        ("batch.global", "int > 0", ""),
        ("data.holdout", "float >= 0, <= 0.5 | auto", "auto"),
        ("data.mean", "[float, float, float]", "[0.485, 0.456, 0.406]"),
        ("seed", "int >= 0", "0"),
        ("encoder.freeze_patches", "true | false", "false"),
        ("norm.group", "int >= 2 | global | null", "null"),
        ("optim.weight_decay", "float | {start, peak, end, warmup_epochs, shape, steps}", "0.0001"),
        ("views.0.size", "int > 0", ""),
        ("optim.groups.0.schedule.shape", "cosine | linear | steps | constant", "cosine"),
    ],
)
def test_settings_tell_types_allowed_values_and_defaults(path: str, kind: str, default: str) -> None:
    setting = of_recipe()[path]
    assert (setting.kind, setting.default) == (kind, default)


def test_a_methods_own_settings_are_told_by_its_name() -> None:
    assert of_method("simclr")["method.projector_norm"].kind == "batch | layer | group_ws | none"


def test_every_setting_of_a_recipe_has_a_path_among_them() -> None:
    recipe = load_recipe("simclr-cifar10")
    known = of_recipe() | of_method("simclr")
    assert {path for path in flatten(recipe.dump()) if path != "optim.groups"} <= known.keys()


@pytest.mark.parametrize("name", ["images", "byol-cifar10", "dino-imagenet", "mocov3-imagenet"])
def test_a_commented_recipe_reads_back_to_the_same_with_and_without_what_is_off(name: str) -> None:
    recipe = load_recipe(name)
    for off in (None, lambda path, value: value is None):
        text = commented(recipe.dump(), lambda path: f"of {path}: {{a, 'b'}}", off)
        assert Recipe.parse(yaml.parse(text, "text"), "text") == recipe
    for path, value in flatten(recipe.dump()).items():
        if not isinstance(value, list):
            assert f"# of {path}: " in text


def test_a_line_that_is_off_holds_when_its_mark_is_taken_away() -> None:
    text = commented(
        {"norm": {"group": None}, "views": [{"size": 3, "blur": None}]},
        lambda path: "",
        lambda path, v: v is None,
    )
    assert text.splitlines() == ["# norm:", "#   group: null", "views:", "  - size: 3", "#     blur: null"]
    again = text.replace("# ", "").replace("blur: null", "blur: 0.5").replace("group: null", "group: 2")
    assert yaml.parse(again, "text") == {"norm": {"group": 2}, "views": [{"size": 3, "blur": 0.5}]}


def test_all_shipped_recipes_can_be_commented() -> None:
    for name in shipped("recipe"):
        assert commented(load_recipe(name).dump(), lambda path: path).startswith("schema: ")
