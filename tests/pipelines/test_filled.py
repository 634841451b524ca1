from vergence.pipelines.filled import filled, shown
from vergence.pipelines.recipe import Recipe, load_recipe
from vergence.platform import yaml
from vergence.platform.train.layout import Layout

LAYOUT = Layout(64, 32, "two-pass", "bf16", "global", None, 10, 100)


def test_what_is_left_open_is_shown_filled_and_the_recipe_reads_back_the_same() -> None:
    recipe = load_recipe("simclr-cifar10", ["views.0.hue=0.3", "norm.group=null"])
    values = filled(recipe, LAYOUT, 1000)
    assert values["precision"] == "bf16"
    assert values["batch.micro"] == 32
    assert values["batch.regime"] == "two-pass"
    assert values["norm.group"] == "global"
    assert values["encoder.image_size"] == 32
    assert values["optim.decay_1d"] is True
    assert values["views.0.gray"] == 0.2
    assert not {"views.0.hue", "norm.span", "views.0.size"} & values.keys()  # given, or of other methods

    text = shown(recipe, values)
    assert Recipe.parse(yaml.parse(text, "text"), "text") == recipe
    lines = {line.split(":")[0].strip(): line for line in text.splitlines()}
    assert lines["precision"].endswith("# bf16, filled in")
    assert lines["gray"].endswith("# 0.2, of simclr-cifar")
    assert "#" not in lines["hue"]


def test_a_pair_of_different_views_has_both_values() -> None:
    values = filled(load_recipe("byol-imagenet"), LAYOUT, 1000)
    assert values["views.0.blur"] == [1.0, 0.1]
    assert values["views.0.gray"] == 0.2


def test_what_the_recipe_gives_is_not_filled() -> None:
    recipe = load_recipe("simclr-cifar10", ["precision=fp32", "batch.micro=16", "batch.regime=kept"])
    assert not {"precision", "batch.micro", "batch.regime"} & filled(recipe, LAYOUT, 1000).keys()
