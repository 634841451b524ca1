"""Parameter groups by kind, the learning-rate rule, and LARS against a plain transcription."""

from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn

from vergence.platform.errors import UserError
from vergence.platform.train.optim.config import GroupConfig, OptimConfig, effective_lr
from vergence.platform.train.optim.groups import build_optimizer, parameter_groups
from vergence.platform.train.optim.lars import LARS
from vergence.platform.train.schedule import ScheduleConfig


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 4), nn.LayerNorm(4))
        self.cls_token = nn.Parameter(torch.zeros(1, 1, 4))
        self.prototypes = nn.Linear(4, 8, bias=False)
        self.frozen = nn.Linear(2, 2).requires_grad_(False)


def decays(config: OptimConfig) -> dict[str, float]:
    model = Model()
    names = {parameter: name for name, parameter in model.named_parameters()}
    groups = parameter_groups(model, config, 0.1, ScheduleConfig())
    return {names[p]: group["decay"].at(0, 1) for group in groups for p in group["params"]}


WEIGHTS = {"encoder.0.weight", "encoder.2.weight"}


@pytest.mark.parametrize("name", ["adamw", "lars"])
def test_only_weights_decay_whatever_their_shape(name: Any) -> None:
    found = decays(OptimConfig(name=name, weight_decay=0.5))
    assert {key for key, decay in found.items() if decay} == WEIGHTS
    assert len(found) == 10  # the frozen layer is in no group


def test_sgd_decays_everything_unless_told_otherwise() -> None:
    assert set(decays(OptimConfig(name="sgd", weight_decay=0.5)).values()) == {0.5}
    found = decays(OptimConfig(name="sgd", weight_decay=0.5, decay_1d=False))
    assert {key for key, decay in found.items() if decay} == WEIGHTS


def test_lars_adapts_only_weights() -> None:
    groups = parameter_groups(Model(), OptimConfig(name="lars"), 0.1, ScheduleConfig())
    assert {group["adapt"]: len(group["params"]) for group in groups} == {True: 2, False: 8}


def test_first_matching_group_sets_lr_decay_and_freezing() -> None:
    rules = (
        GroupConfig(match="prototypes.*", frozen_until=1.0),
        GroupConfig(match="encoder.2.*", lr=10.0, weight_decay=0.0),
        GroupConfig(match="encoder.*", lr=0.1),
    )
    model = Model()
    names = {parameter: name for name, parameter in model.named_parameters()}
    groups = parameter_groups(model, OptimConfig(weight_decay=0.5, groups=rules), 0.2, ScheduleConfig())
    settings = {names[p]: group for group in groups for p in group["params"]}
    assert settings["prototypes.weight"]["frozen_until"] == 1.0
    assert settings["encoder.2.weight"]["lr"] == pytest.approx(2.0)
    assert settings["encoder.2.weight"]["decay"].at(0.5, 1) == 0
    assert settings["encoder.0.weight"]["lr"] == pytest.approx(0.02)
    assert settings["cls_token"]["lr"] == pytest.approx(0.2)


def test_groups_by_kind_and_by_both() -> None:
    """Barlow Twins: .2 for weights, .0048 for biases and norms, alike wherever they are."""
    rules = (
        GroupConfig(match="encoder.*", kinds=("bias",), lr=0.5),
        GroupConfig(kinds=("norm", "bias"), lr=0.024),
        GroupConfig(kinds=("prototype",), frozen_until=1.0),
    )
    model = Model()
    model.head = nn.Linear(4, 2)
    names = {parameter: name for name, parameter in model.named_parameters()}
    groups = parameter_groups(model, OptimConfig(groups=rules), 0.2, ScheduleConfig())
    rates = {names[p]: group["base_lr"] for group in groups for p in group["params"]}
    assert {name for name, rate in rates.items() if rate == 0.1} == {
        "encoder.0.bias", "encoder.1.bias", "encoder.2.bias", "encoder.3.bias",
    }  # fmt: skip
    small = {name for name, rate in rates.items() if rate == pytest.approx(0.0048)}
    assert small == {"encoder.1.weight", "encoder.3.weight", "head.bias"}
    until = {names[p]: group["frozen_until"] for group in groups for p in group["params"]}
    assert {name for name, epochs in until.items() if epochs} == {"prototypes.weight"}


def test_a_group_of_a_kind_that_there_is_not_is_refused() -> None:
    config = OptimConfig(groups=(GroupConfig(match="encoder.*", kinds=("token",)),))
    with pytest.raises(UserError, match=r"match 'encoder\.\*' and kinds \[token\] fits no trainable"):
        parameter_groups(Model(), config, 0.1, ScheduleConfig())
    with pytest.raises(ValidationError, match="needs match, kinds or both"):
        GroupConfig(lr=2.0)


def test_glob_without_a_match_names_the_nearest() -> None:
    config = OptimConfig(groups=(GroupConfig(match="prototype.*"),))
    with pytest.raises(UserError, match=r"'prototype\.\*' fits no .*did you mean prototypes\.\*\?"):
        parameter_groups(Model(), config, 0.1, ScheduleConfig())


@pytest.mark.parametrize(("rule", "expected"), [("linear", 1.2), ("sqrt", 0.6), ("none", 0.3)])
def test_effective_lr_follows_the_rule(rule: Any, expected: float) -> None:
    assert effective_lr(OptimConfig(lr=0.3, per=256, rule=rule), 1024) == pytest.approx(expected)


def test_lars_equals_its_transcription_in_float64() -> None:
    """g + wd w; r = eta |w| / |g|; v = mu v + r g; w - lr v: five steps, one layer starting at zero."""
    rng = np.random.default_rng(0)
    shapes, adapt, decay = [(4, 3, 2), (5,), (3, 3), (2, 2)], [True, False, True, True], [0.1, 0.0, 0.0, 0.1]
    ws = [rng.normal(size=shape) * (i != 2) for i, shape in enumerate(shapes)]
    vs = [np.zeros(shape) for shape in shapes]
    params = [nn.Parameter(torch.tensor(w)) for w in ws]
    groups = [{"params": [p], "adapt": a, "weight_decay": d} for p, a, d in zip(params, adapt, decay)]
    optimizer = LARS(groups, lr=0.3, momentum=0.9, trust=0.02)
    for step in range(5):
        for group in optimizer.param_groups:
            group["lr"] = 0.3 / (1 + step)
        for i, p in enumerate(params):
            g = rng.normal(size=shapes[i]) * (i != 3 or step > 0)
            p.grad = torch.tensor(g)
            g = g + decay[i] * ws[i]
            w_norm, g_norm = np.sqrt((ws[i] ** 2).sum()), np.sqrt((g**2).sum())
            ratio = 0.02 * w_norm / g_norm if adapt[i] and w_norm > 0 and g_norm > 0 else 1.0
            vs[i] = 0.9 * vs[i] + ratio * g
            ws[i] = ws[i] - 0.3 / (1 + step) * vs[i]
        optimizer.step()
    for p, w in zip(params, ws):
        np.testing.assert_allclose(p.detach().numpy(), w, rtol=1e-13)


@pytest.mark.parametrize("name", ["sgd", "adamw", "lars"])
def test_optimizer_takes_its_settings_from_the_config(name: Any) -> None:
    optimizer = build_optimizer(
        Model(), OptimConfig(name=name, momentum=0.7, betas=(0.8, 0.9)), 0.1, ScheduleConfig()
    )
    key, expected = ("betas", (0.8, 0.9)) if name == "adamw" else ("momentum", 0.7)
    assert all(group[key] == expected for group in optimizer.param_groups)
