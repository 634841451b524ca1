import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from vergence.platform.runs.records import FirstStep, Metrics, Monitored, StepMark, Stepped, Tail, line, parse
from vergence.platform.train.record import cut


@pytest.fixture
def tail(tmp_path: Path) -> Iterator[Tail]:
    with Tail(tmp_path) as tail:
        yield tail


def append(path: Path, *steps: int) -> None:
    with path.open("a") as file:
        for step in steps:
            file.write(json.dumps({"step": step, "loss": step / 10}) + "\n")


def test_tail_hands_out_each_record_once_and_waits_for_whole_lines(tail: Tail, tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert tail.read() == []
    append(path, 0, 1)
    with path.open("a") as file:
        file.write('{"step": 2, "lo')
    assert [record.step for record in tail.read()] == [0, 1]
    with path.open("a") as file:
        file.write('ss": 1}\n')
    assert tail.read() == [Metrics(2, 0.0, {"loss": 1.0})]
    assert tail.read() == []


def test_after_a_resume_only_new_steps_are_handed_out(tail: Tail, tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    append(path, *range(10))
    assert len(tail.read()) == 10
    cut(path, 5)  # the resumed run repeats steps 5 to 9
    append(path, *range(5, 12))
    assert [record.step for record in tail.read()] == [10, 11]


def test_a_cut_just_after_the_file_was_opened_loses_nothing(
    tail: Tail, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, opened = tmp_path / "metrics.jsonl", Path.open
    append(path, *range(10))
    assert len(tail.read()) == 10
    append(path, 10)

    def opened_then_cut(self: Path, *arguments: Any, **options: Any) -> Any:
        file = opened(self, *arguments, **options)
        monkeypatch.undo()
        cut(path, 5)
        append(path, 11)
        return file

    monkeypatch.setattr(Path, "open", opened_then_cut)
    assert [record.step for record in tail.read() + tail.read()] == [10, 11]


def test_a_cut_file_that_gets_the_number_of_an_old_one_is_read_from_its_start(
    tail: Tail, tmp_path: Path
) -> None:
    path = tmp_path / "metrics.jsonl"
    append(path, *range(10))
    assert len(tail.read()) == 10
    numbers = [path.stat().st_ino]
    while numbers[-1] not in numbers[:-1] and len(numbers) < 5:  # file systems give free numbers to new files
        cut(path, 5)
        numbers.append(path.stat().st_ino)
    append(path, *range(5, 9))
    with path.open("a") as file:
        file.write('{"step": 12}\n' * 3)
    assert [record.step for record in tail.read()] == [12] * 3


def test_a_file_cut_in_place_is_read_from_its_start(tail: Tail, tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    append(path, *range(10))
    assert len(tail.read()) == 10
    os.truncate(path, 0)
    append(path, 11)
    assert [record.step for record in tail.read()] == [11]


@pytest.mark.parametrize("torn", [b'{"step": 1, "lo', b"\0\0\0", b"\xff{", b"7", b"null", b'{"loss": 1}'])
def test_a_torn_line_costs_itself_only(tail: Tail, tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "metrics.jsonl"
    append(path, 0)
    with path.open("ab") as file:
        file.write(torn + b"\n")
    append(path, 2)
    assert [record.step for record in tail.read()] == [0, 2]
    cut(path, 2)
    assert path.read_text() == '{"step": 0, "loss": 0.0}\n'


def test_cut_drops_later_steps_and_a_half_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    append(path, *range(6))
    with path.open("a") as file:
        file.write('{"step": 1, "lo')
    cut(path, 3)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [0, 1, 2]


def test_what_comes_late_in_a_step_is_handed_out_too(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with Tail(tmp_path, after=3.0) as tail:
        append(path, 2)
        with path.open("a") as file:
            file.write('{"step": 2, "event": "monitor"}\n{"step": 3, "event": "first_step"}\n')
        assert [type(record) for record in tail.read()] == [FirstStep]  # the others are of the attempt before
        append(path, 3)
        assert [record.step for record in tail.read()] == [3]
        with path.open("a") as file:
            file.write('{"step": 3, "event": "monitor"}\n')
        assert [type(record) for record in tail.read()] == [Monitored]


@pytest.mark.parametrize(
    "record",
    [
        FirstStep(3, {"enter": 1.5, "ray": 2.5}),
        Metrics(3, 1e9, {"lr": 0.1, "updates": 4.0}),
        Metrics(3, 1e9, {"lr": 0.1}, "a blank image"),
        Monitored(8, 1e9, 1, {"knn": 0.5, "h_effective_rank": 3.25}),
        Monitored(8, 1e9, 1, {"h_effective_rank": 1.0}, "collapse"),
    ],
)
def test_a_record_is_read_back_from_its_line(record: FirstStep | Metrics | Monitored) -> None:
    assert parse(line(record).encode()) == record
    assert isinstance(json.loads(line(record)), dict)


def test_a_step_mark_is_told_once_and_a_half_one_not_at_all(tmp_path: Path) -> None:
    ours, theirs = StepMark(tmp_path), StepMark(tmp_path)
    assert ours.read() is None
    theirs.write(7)
    assert ours.read() == Stepped(7)
    assert ours.read() is None
    (tmp_path / "step").write_text("12")
    assert ours.read() is None
    theirs.write(123)
    assert ours.read() == Stepped(123)
    StepMark(tmp_path / "gone").write(1)  # no more than a hint
