"""The learning rate's schedule: its known values, and its settings' names of before."""

import math
from typing import Any

import pytest
from pydantic import ValidationError

from vergence.platform.train.schedule import ScheduleConfig

STEPS = {"shape": "steps", "steps": ((6, 0.1), (8, 0.01)), "warmup_epochs": 1}


@pytest.mark.parametrize(
    ("config", "progress", "expected"),
    [
        ({}, 0.0, 1.0),
        ({}, 0.5, 0.5),
        ({}, 1.0, 0.0),
        ({}, 1 / 3, 0.75),  # cos(60 degrees) = 1/2
        ({"end": 0.2}, 1.0, 0.2),
        ({"end": 0.2}, 0.5, 0.6),
        ({"warmup_epochs": 2}, 0.0, 0.0),
        ({"warmup_epochs": 2}, 0.1, 0.5),
        ({"warmup_epochs": 2}, 0.2, 1.0),
        ({"warmup_epochs": 2}, 0.6, 0.5),
        ({"warmup_epochs": 2, "start": 0.4}, 0.05, 0.55),
        ({"shape": "constant", "warmup_epochs": 2}, 0.1, 0.5),
        ({"shape": "constant", "warmup_epochs": 2, "end": 0.5}, 0.9, 1.0),
        ({"shape": "linear", "warmup_epochs": 2}, 0.4, 0.75),
        ({"warmup_epochs": 10}, 0.75, 0.75),  # a warm-up as long as the run
        ({"warmup_epochs": 10}, 1.0, 1.0),
        ({"warmup_epochs": 20}, 1.0, 0.5),
        (STEPS, 0.5, 1.0),
        (STEPS, 0.05, 0.5),
        (STEPS, 0.6, 0.1),  # MoCo: from the first step of the epoch on
        (STEPS, 0.79, 0.1),
        (STEPS, 1.0, 0.01),
    ],
)
def test_known_values(config: dict, progress: float, expected: float) -> None:
    assert ScheduleConfig(**config).at(progress, 10) == pytest.approx(expected, abs=1e-12)


def test_last_step_stays_above_the_end() -> None:
    config, steps = ScheduleConfig(warmup_epochs=1, end=0.1), 1000
    values = [config.at(step / steps, 10) for step in range(steps)]
    assert values[0] == 0
    assert max(values) == values[100] == 1
    assert all(math.isfinite(value) and value > 0.1 for value in values[100:])
    assert values[100:] == sorted(values[100:], reverse=True)


def test_settings_of_version_0_1_are_read() -> None:
    old: dict[str, Any] = {"name": "constant", "floor": 0.5}
    assert ScheduleConfig(**old) == ScheduleConfig(shape="constant", end=0.5)
    with pytest.raises(ValidationError, match="name"):
        ScheduleConfig(name="cosine", shape="cosine")  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"shape": "steps"}, "shape steps with 0 steps: shape steps needs steps"),
        ({"steps": ((6, 0.1),)}, "shape cosine with 1 steps: .* no other shape has any"),
        (
            {"shape": "steps", "steps": ((8, 0.1), (6, 0.01))},
            r"comes after those before it, got \[8.0, 6.0\]",
        ),
        ({"shape": "steps", "steps": ((8, -0.1),)}, "greater than or equal to 0"),
    ],
)
def test_steps_and_their_shape_go_together_in_the_order_of_epochs(config: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ScheduleConfig(**config)


def test_a_step_falls_on_the_first_batch_of_its_epoch() -> None:
    config, per_epoch, epochs = ScheduleConfig(shape="steps", steps=((120, 0.1), (160, 0.01))), 333, 200
    values = [config.at(step / (per_epoch * epochs), epochs) for step in range(per_epoch * epochs)]
    assert [values.index(value) for value in (1.0, 0.1, 0.01)] == [0, 120 * per_epoch, 160 * per_epoch]
