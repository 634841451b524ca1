from pathlib import Path

import pytest

from vergence.methods.catalog import METHODS
from vergence.methods.method import DataFacts
from vergence.pipelines.recipe import Recipe, build_method, initial_encoder, load_recipe, override
from vergence.pipelines.shipped import shipped
from vergence.platform import yaml
from vergence.platform.errors import UserError


@pytest.mark.parametrize("name", sorted(shipped("recipe")))
def test_every_shipped_recipe_is_valid_and_survives_its_dump(name: str) -> None:
    recipe = load_recipe(name)
    assert Recipe.parse(yaml.parse(yaml.dump(recipe.dump()), "dump"), "dump") == recipe


@pytest.mark.parametrize("data", ["cifar10", "imagenet"])
def test_there_is_a_recipe_of_both_data_sets_for_every_method(data: str) -> None:
    names = [name for name in shipped("recipe") if name.endswith(f"-{data}")]
    assert {load_recipe(name).method.name for name in names} == set(METHODS)


@pytest.mark.parametrize("name", ["images", "images-small"])
@pytest.mark.parametrize("vit", [None, "vit_small_patch16_224"])
def test_recipes_for_own_images_bear_no_data_sets_name_and_take_a_vit_by_one_word(
    name: str, vit: str | None
) -> None:
    recipe = load_recipe(name, [f"encoder.name={vit}"] if vit else [])
    assert "cifar" not in shipped("recipe")[name].read_text().lower()
    assert recipe.track.register_as is None
    assert recipe.data.mean == (0.485, 0.456, 0.406)
    assert initial_encoder(recipe, seed=0).dim == (
        384 if vit else {"images": 2048, "images-small": 512}[name]
    )


def test_overrides_reach_every_level_and_are_typed() -> None:
    recipe = load_recipe(
        "simclr-cifar10", ["optim.lr=1e-3", "views.0.size=24", "batch.micro=16", "scale.zero=1"]
    )
    assert (recipe.optim.lr, recipe.views[0].size, recipe.batch.micro, recipe.scale.zero) == (1e-3, 24, 16, 1)


def test_patterns_need_no_quotes() -> None:
    for pattern in ("*.tar", "{a,b}.tar", "a #1.tar", "12"):
        assert load_recipe("simclr-cifar10", [f"data.train={pattern}"]).data.train == pattern
    assert load_recipe("simclr-cifar10", ["track.register=null"]).track.register_as is None


@pytest.mark.parametrize("text", ["{a: 1}: 3", "seed: !!timestamp 2020-01-01", "seed: !!int abc", "[]", ""])
def test_what_is_no_recipe_is_one_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        load_recipe(str(path))
    assert "\n" not in str(caught.value)


def test_a_path_that_is_no_utf8_is_refused_with_the_cure() -> None:
    path = b"caf\xe9/a.tar".decode("utf-8", "surrogateescape")
    with pytest.raises(
        UserError, match=r"data\.train=caf\\xe9/a\.tar: a recipe is text in UTF-8; write \? for each byte"
    ):
        load_recipe("simclr-cifar10", [f"data.train={path}"])


def test_operational_settings_are_not_the_identity() -> None:
    recipe = load_recipe("simclr-cifar10")
    same = load_recipe(
        "simclr-cifar10", ["scale.workers=1", "batch.micro=4", "commit.keep=9", "data.readers=2"]
    )
    other = load_recipe("simclr-cifar10", ["norm.group=32"])
    assert same.digest() == recipe.digest() != other.digest()


def test_initial_weights_follow_the_seed_and_leave_the_global_generator_alone() -> None:
    import torch

    recipe = load_recipe("simclr-cifar10", ["encoder.width=0.0625"])
    state = torch.get_rng_state()
    facts = DataFacts(num_samples=100, num_ids=100, epochs=recipe.epochs)
    first, again = build_method(recipe, facts), build_method(recipe, facts)
    same, other = initial_encoder(recipe, recipe.seed), initial_encoder(recipe, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    pairs = list(zip(first.parameters(), again.parameters()))
    assert all(torch.equal(a, b) for a, b in pairs)
    assert all(torch.equal(a, b) for a, b in zip(first.encoder.parameters(), same.parameters()))
    assert not all(torch.equal(a, b) for a, b in zip(same.parameters(), other.parameters()))


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("method.temprature=1", "method.temprature is not a setting (did you mean temperature?"),
        ("batch.global-size=1", "batch.global-size is not a setting (did you mean global?"),
        ("views.0.siz=1", "views.0.siz is not a setting (did you mean size?"),
        ("views.0.size=big", "views.0.size: input should be a valid integer"),
        ("optm.lr=1", "optm is not a setting (did you mean optim?"),
        ("optim.name=sdg", "optim.name: got 'sdg' (did you mean sgd?"),
        ("method.name=byool", "method.name: got 'byool' (did you mean byol?"),
        ("data.holdout=0.7", "data.holdout: input should be less than or equal to 0.5 or 'auto', got 0.7"),
        ("precision=fp16", "precision: got 'fp16'"),
        ("batch=3", "batch: "),
        ("norm.group=0", "norm.group: input should be greater than or equal to 2 or 'global', got 0"),
        ("optim.lr=1e999", "a value is no number"),
        ("track.register=a@b", "track.register: "),
        ("optim.weight_decay=-1", "optim.weight_decay: input should be at least 0, got -1"),
        ("optim.weight_decay={pek: 1}", "optim.weight_decay.pek is not a setting (did you mean peak?"),
        ("optim.weight_decay={end: 1}", "optim.weight_decay.peak is missing"),
        ("method.temperature=low", "method.temperature: input should be a valid number, got 'low'"),
        ("method.temperature={peak: 0}", "method.temperature: input should be greater than 0"),
        ("schedule.shape=cosin", "schedule.shape: got 'cosin' (did you mean cosine?"),
        ("optim.groups=[{lr: 2}]", "optim.groups.0: a group needs match, kinds or both"),
        ("optim.groups=[{kinds: [nrm]}]", "optim.groups.0.kinds.0: got 'nrm' (did you mean norm?"),
    ],
)
def test_mistakes_name_path_and_nearest(assignment: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        load_recipe("simclr-cifar10", [assignment])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_another_methods_name_says_how_to_get_there() -> None:
    with pytest.raises(
        UserError, match=r"method\.name=byol: simclr-cifar10 is a recipe of simclr, .*'method={name: byol}'"
    ):
        load_recipe("simclr-cifar10", ["method.name=byol"])
    assert load_recipe("simclr-cifar10", ["method={name: byol}"]).method.name == "byol"


@pytest.mark.parametrize("assignment", ["epochs", "=3", "views.7.size=3", "epochs.x=3"])
def test_what_is_no_override_is_refused(assignment: str) -> None:
    with pytest.raises(UserError, match="override"):
        override({"epochs": 1, "views": [{}]}, [assignment])
