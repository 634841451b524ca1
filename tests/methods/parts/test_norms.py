"""Norms by name, and standardised weights."""

from typing import Any

import pytest
import torch
from torch import nn

from vergence.methods.parts.backbones import EncoderConfig, build_encoder
from vergence.methods.parts.heads import mlp, scale_norm
from vergence.methods.parts.norms import (
    NormName,
    StandardisedConv2d,
    StandardisedLinear,
    groups,
    standardised,
)


def encoder(norm: NormName | None, **config: Any) -> nn.Module:
    torch.manual_seed(0)
    return build_encoder(EncoderConfig(name="resnet18", stem="cifar", width=0.25, norm=norm, **config))


@pytest.mark.parametrize(
    ("channels", "expected"), [(16, 4), (64, 16), (128, 32), (2048, 32), (24, 6), (12, 3), (5, 1)]
)
def test_groups_divide_the_channels_and_hold_four_at_least(channels: int, expected: int) -> None:
    assert groups(channels) == expected


def test_standardised_weights_equal_their_formula() -> None:
    weight = torch.randn(3, 4, 2, 2, dtype=torch.float64)
    for row, found in zip(weight, standardised(weight)):
        values = row.flatten().tolist()
        mean = sum(values) / 16
        std = (sum((v - mean) ** 2 for v in values) / 16) ** 0.5
        torch.testing.assert_close(
            found.flatten(), torch.tensor([(v - mean) / (std + 1e-5) for v in values]).double()
        )


@pytest.mark.parametrize("norm", ["layer", "group_ws", "none"])
def test_without_batch_statistics_a_sample_is_alone(norm: NormName) -> None:
    torch.manual_seed(1)
    x = torch.randn(4, 3, 16, 16)
    network = nn.Sequential(encoder(norm), mlp((128, 32, 16), norm=norm, hidden_bias=True, last_bias=True))
    network.append(scale_norm(norm, 16)).train()
    torch.testing.assert_close(network(x)[:1], network(x[:1]), atol=1e-4, rtol=1e-4)
    assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in network.modules())


def test_group_norm_comes_with_standardised_weights_everywhere() -> None:
    network = encoder("group_ws")
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    assert len(convolutions) == 20
    assert all(type(m) is StandardisedConv2d for m in convolutions)
    head = mlp((8, 8, 4), norm="group_ws", hidden_bias=False, last_bias=False)
    assert [type(m) for m in head] == [StandardisedLinear, nn.GroupNorm, nn.ReLU, StandardisedLinear]
    x = torch.randn(2, 8)
    with torch.no_grad():
        before = head(x)
        head[3].weight.mul_(5).add_(2)
    torch.testing.assert_close(head(x), before, atol=1e-4, rtol=1e-3)


def test_weights_keep_their_names_and_initial_values() -> None:
    plain, other = encoder(None).state_dict(), encoder("layer").state_dict()
    assert other.keys() == {name for name in plain if "running" not in name and "tracked" not in name}
    assert all(torch.equal(value, plain[name]) for name, value in other.items())
    last = encoder("group_ws", zero_init_residual=True).backbone.layer2[0].bn2
    assert (last.weight == 0).all()


@pytest.mark.parametrize("norm", ["batch", "layer", "group_ws"])
def test_a_scale_norm_has_a_gain_and_no_offset(norm: NormName) -> None:
    assert [name for name, _ in scale_norm(norm, 8).named_parameters()] == ["weight"]
