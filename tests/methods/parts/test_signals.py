import json

import pytest
import torch
from small_methods import normal

from vergence.methods.parts.backbones import EncoderConfig, build_encoder
from vergence.methods.parts.signals import Signal

SHAPES = {"waves": (900,), "bytes": (40,), "vectors": (9, 7)}


def signal(name: str, **config: object) -> Signal:
    torch.manual_seed(0)
    inputs = {"inputs": 7} if name == "vectors" else {}
    encoder = build_encoder(EncoderConfig.model_validate({"name": name, "width": 1 / 64, **inputs, **config}))
    assert isinstance(encoder, Signal)
    return encoder.double()


def raw(name: str, n: int = 2) -> torch.Tensor:
    values = normal(n, *SHAPES[name])
    return (values.abs() * 60).clamp(max=255).to(torch.uint8) if name == "bytes" else values


@pytest.mark.parametrize("name", SHAPES)
def test_codes_have_the_number_of_steps_that_is_told_and_the_representation_is_their_mean(name: str) -> None:
    encoder, x = signal(name, norm="layer"), raw(name)
    codes = encoder.features(x)
    assert codes.shape == (2, int(encoder.steps(torch.tensor(x.shape[1]))), 8)
    torch.testing.assert_close(encoder(x), codes.mean(dim=1))


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("norm", ["layer", "none"])
def test_a_code_is_of_what_lies_below_it(name: str, norm: str) -> None:
    """What is behind the samples of the first codes, padding too, does not enter them; the number is exact."""
    encoder, x = signal(name, norm=norm), raw(name)
    length = x.shape[1] - x.shape[1] // 3
    whole = int(encoder.steps(torch.tensor(length)))
    assert 0 < whole < encoder.features(x).shape[1]
    changed = x.clone()
    changed[:, length:] = 0
    before, after = encoder.features(x), encoder.features(changed)
    assert torch.equal(before[:, :whole], after[:, :whole])
    torch.testing.assert_close(encoder.features(x[:, :length]), before[:, :whole])


def test_normed_codes_of_a_wave_do_not_depend_on_its_loudness() -> None:
    encoder, x = signal("waves", norm="layer"), raw("waves")
    torch.testing.assert_close(encoder(x / 30), encoder(x), rtol=1e-3, atol=1e-3)
    plain = signal("waves")
    assert not torch.allclose(plain(x / 30), plain(x), rtol=1e-3, atol=1e-3)


def test_waves_have_the_published_convolutions() -> None:
    encoder = build_encoder(EncoderConfig(name="waves"))
    assert isinstance(encoder, Signal)
    assert [(layer.kernel_size, layer.stride) for layer in encoder.layers] == [
        ((10,), (5,)), ((8,), (4,)), ((4,), (2,)), ((4,), (2,)), ((4,), (2,))
    ]  # fmt: skip
    assert (encoder.dim, encoder.field) == (512, "audio")
    assert encoder.steps(torch.tensor([0, 464, 465, 624, 625, 20480])).tolist() == [0, 0, 1, 1, 2, 126]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"name": "waves", "norm": "batch"}, "encoder.norm: waves takes layer or none, got batch"),
        ({"name": "waves", "stem": "cifar"}, "encoder.stem: waves takes no images"),
        ({"name": "waves", "inputs": 3}, "encoder.inputs: give the numbers in a vector for vectors"),
        ({"name": "vectors"}, "encoder.inputs: give the numbers in a vector for vectors"),
        ({"name": "resnet18", "strides": [2]}, "encoder.strides: resnet18 is a model of timm"),
    ],
)
def test_settings_that_do_not_fit_are_refused(config: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message.replace(".", r"\.")):
        build_encoder(EncoderConfig.model_validate_json(json.dumps(config)))
