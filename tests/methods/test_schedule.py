"""Numbers and schedules as settings of a method."""

import pytest
from pydantic import BaseModel, ValidationError

from vergence.methods.schedule import Positive, Schedule, Share, scheduled


class Config(BaseModel, extra="forbid", strict=True):
    momentum: Share = 0.99
    temperature: Positive = 0.1


def test_a_number_is_constant_or_moves_to_an_end() -> None:
    assert [scheduled(0.3).at(progress, 10) for progress in (0, 0.4, 1)] == [0.3] * 3
    rising = scheduled(0.996, end=1.0)
    assert rising.at(0, 100) == 0.996
    assert rising.at(0.5, 100) == pytest.approx(0.998)
    assert rising.at(1 / 3, 100) == pytest.approx(0.997)  # 1 - .004 * (1 + .5) / 2
    assert rising.at(1, 100) == 1
    own = Schedule(peak=0.5)
    assert scheduled(own, end=1.0) is own


def test_a_warm_up_leads_from_start_to_peak_and_the_peak_is_kept_without_an_end() -> None:
    teacher = Schedule(start=0.04, peak=0.07, warmup_epochs=30)  # DINO
    assert teacher.at(0, 100) == 0.04
    assert teacher.at(0.15, 100) == pytest.approx(0.055)
    assert [teacher.at(progress, 100) for progress in (0.3, 0.7, 1)] == [0.07] * 3
    decay = Schedule(peak=0.04, end=0.4)
    assert decay.at(0.5, 100) == pytest.approx(0.22)


def test_settings_are_numbers_or_schedules_within_bounds() -> None:
    read = Config.model_validate_json('{"momentum": {"peak": 0.9, "end": 1}, "temperature": 1}')
    assert read.momentum == Schedule(peak=0.9, end=1)
    assert Config.model_validate_json(read.model_dump_json()) == read
    for wrong in (
        {"momentum": {"peak": 0.9, "shape": "steps", "steps": [[3, 1.1]]}},
        {"momentum": 1.5},
        {"momentum": {"peak": 0.9, "end": 1.1}},
        {"temperature": 0},
        {"temperature": {"start": 0.0, "peak": 0.1}},
        {"temperature": {"end": 0.1}},
        {"temperature": "low"},
    ):
        with pytest.raises(ValidationError):
            Config.model_validate(wrong)
