"""The presets against the published tables, and what a recipe's `views` may say."""

import json

import pytest
from pydantic import ValidationError

from vergence.platform.augment.presets import PRESETS, Augmentation
from vergence.platform.augment.views import ViewSpec

# crop scale; jitter strengths (brightness, contrast, saturation, hue); p of gray, blur, solarize
TABLE = {
    "simclr": [((0.08, 1), (0.8, 0.8, 0.8, 0.2), 0.2, 0.5, 0.0)],
    "instdisc": [((0.2, 1), (0.4, 0.4, 0.4, 0.4), 0.2, 0.0, 0.0)],
    "mocov2": [((0.2, 1), (0.4, 0.4, 0.4, 0.1), 0.2, 0.5, 0.0)],
    "infomin": [((0.2, 1), (0.8, 0.8, 0.8, 0.2), 0.2, 0.5, 0.0)],
    "byol": [
        ((0.08, 1), (0.4, 0.4, 0.2, 0.1), 0.2, 1.0, 0.0),
        ((0.08, 1), (0.4, 0.4, 0.2, 0.1), 0.2, 0.1, 0.2),
    ],
    "simclr-cifar": [((0.08, 1), (0.4, 0.4, 0.4, 0.1), 0.2, 0.0, 0.0)],
    "mocov2-cifar": [((0.08, 1), (0.4, 0.4, 0.4, 0.1), 0.2, 0.0, 0.0)],
    "byol-cifar": [
        ((0.08, 1), (0.4, 0.4, 0.2, 0.1), 0.2, 0.0, 0.0),
        ((0.08, 1), (0.4, 0.4, 0.2, 0.1), 0.2, 0.0, 0.2),
    ],
}


def test_presets_equal_the_published_table() -> None:
    assert {
        name: [
            (a.crop_scale, (a.brightness, a.contrast, a.saturation, a.hue), a.gray, a.blur, a.solarize)
            for a in views
        ]
        for name, views in PRESETS.items()
    } == TABLE
    for name, each in ((name, a) for name, views in PRESETS.items() for a in views):
        always = 1.0 if name == "instdisc" else 0.8
        assert (each.flip, each.jitter, each.crop_ratio) == (0.5, always, (3 / 4, 4 / 3))
        assert (each.blur_sigma, each.solarize_threshold) == ((0.1, 2.0), 128)
        rand_augment = (each.rand_augment, each.rand_augment_magnitude, each.rand_augment_std)
        assert rand_augment == (2 if name == "infomin" else 0, 10.0, 0.5)
        assert not any((each.rotate, each.sobel, each.noise, each.cutout))


def test_blur_kernel_is_a_tenth_of_the_side_and_odd() -> None:
    assert [Augmentation.blur_kernel(size) for size in (224, 96, 64, 32)] == [23, 9, 7, 3]


def test_fields_override_the_preset() -> None:
    spec = ViewSpec(count=2, size=96, recipe="byol", crop_scale=(0.4, 1.0), solarize=0.0)
    first, second = spec.augmentations()
    assert (first.crop_scale, second.crop_scale) == ((0.4, 1.0), (0.4, 1.0))
    assert (first.blur, second.blur, second.solarize) == (1.0, 0.1, 0.0)
    assert ViewSpec(count=3, size=32, recipe="simclr-cifar").augmentations() == [*PRESETS["simclr-cifar"] * 3]


def test_without_a_preset_nothing_happens_but_crop_and_flip() -> None:
    (only,) = ViewSpec(size=32).augmentations()
    assert (only.crop_scale, only.flip) == ((0.08, 1.0), 0.5)
    assert not any(
        (only.brightness, only.contrast, only.saturation, only.hue, only.gray, only.blur, only.solarize)
    )
    assert not any((only.rotate, only.sobel, only.noise, only.cutout, only.rand_augment))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"size": 32, "recipe": "simclr-cifer"}, "did you mean simclr-cifar"),
        ({"size": 32, "recipe": "byol"}, "count must be 2, got 1"),
        (
            {"size": 32, "crop_scale": [0.5, 0.2]},
            r"crop_scale must be 0 < smallest <= largest <= 1, got \[0.5, 0.2\]",
        ),
        ({"size": 32, "crop_scale": [0.5, 1.5]}, "crop_scale must be"),
        ({"size": 32, "blur_sigma": [0.0, 2.0]}, "blur_sigma must be"),
        ({"size": 32, "noise_sigma": [0.3, 0.2]}, "noise_sigma must be"),
        ({"size": 32, "cutout_size": 1.5}, "less than or equal to 1"),
        ({"size": 32, "rand_augment": -1}, "greater than or equal to 0"),
        ({"size": 32, "rand_augment_magnitude": 11}, "less than or equal to 10"),
        ({"size": 32, "gray": 1.2}, "less than or equal to 1"),
        ({"size": 0}, "greater than 0"),
        ({"size": "32"}, "valid integer"),
        ({"size": 32, "grey": 0.2}, "grey"),
    ],
)
def test_mistakes_are_named(fields: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ViewSpec.model_validate_json(json.dumps(fields))


def test_every_field_is_described() -> None:
    assert all(field.description for field in ViewSpec.model_fields.values())
