"""The learning rate's schedule: its known values, and its settings' names of before."""

import math
from typing import Any

import pytest
from pydantic import ValidationError

from vergence.platform.train.schedule import ScheduleConfig


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
