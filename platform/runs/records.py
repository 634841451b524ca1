"""What a run tells while it goes on: records of metrics.jsonl, as types and as lines, and remarks in words."""

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Self


class FirstStep(NamedTuple):
    """The ranks have taken their first step."""

    step: int
    stages: Mapping[str, float]  # stage of the start -> Unix time at which it was done


class Metrics(NamedTuple):
    """Of one step: lr, loss (none if no rank had a finite one), counts, gradient norms, the method's own, speed."""

    step: int  # from 0: the step that was taken
    time_s: float  # Unix time
    values: Mapping[str, float]
    warning: str | None = None


class Monitored(NamedTuple):
    """The scores after an epoch."""

    step: int  # the last of the epoch
    time_s: float
    epoch: int  # epochs done
    values: Mapping[str, float]
    warning: str | None = None


class Note(NamedTuple):
    """What a run has to say in words: what it waits for, that it exports. Not in metrics.jsonl."""

    text: str


class Stepped(NamedTuple):
    """So many steps are done, whether or not the last one has a record. Not in metrics.jsonl."""

    steps: int


Record = FirstStep | Metrics | Monitored
Event = Record | Note | Stepped

_WITHIN_A_STEP = {FirstStep: 0.1, Metrics: 0.2, Monitored: 0.3}


def position(record: Record) -> float:
    """Where a record stands in the run: its step, and its place among the records of that step."""
    return record.step + _WITHIN_A_STEP[type(record)]


def line(record: Record) -> str:
    """A record as a line of metrics.jsonl: one flat JSON object."""
    match record:
        case FirstStep(step, stages):
            fields: dict[str, Any] = {"step": step, "event": "first_step", "stages": dict(stages)}
        case Metrics(step, time_s, values, warning):
            fields = {"step": step, "time": time_s, **values} | ({"warning": warning} if warning else {})
        case Monitored(step, time_s, epoch, values, warning):
            about = {"step": step, "time": time_s, "event": "monitor", "epoch": epoch}
            fields = {**about, **values, "warning": warning}
    return json.dumps(fields) + "\n"


def parse(text: bytes) -> Record | None:
    """The record in a line of metrics.jsonl; None if a kill or a full disk has left only a part of it."""
    try:
        fields = json.loads(text)
    except ValueError:
        return None
    if not isinstance(fields, dict) or not isinstance(fields.get("step"), int):
        return None
    step, event, warning = fields.pop("step"), fields.pop("event", None), fields.pop("warning", None)
    if event == "first_step":
        return FirstStep(step, fields.get("stages", {}))
    time_s, epoch = float(fields.pop("time", 0.0)), fields.pop("epoch", 0)
    values = {name: float(value) for name, value in fields.items() if isinstance(value, int | float)}
    return (
        Monitored(step, time_s, epoch, values, warning) if event else Metrics(step, time_s, values, warning)
    )


class StepMark:
    """The number of steps that are done, beside metrics.jsonl: rank 0 writes it at every step, the command reads it."""

    def __init__(self, logs: Path) -> None:
        self.path = logs / "step"
        self._seen: bytes | None = None

    def write(self, steps: int) -> None:
        """No more than a hint: a full disk, or a folder that is gone, stops nothing."""
        with contextlib.suppress(OSError):
            self.path.write_bytes(b"%d\n" % steps)

    def read(self) -> Stepped | None:
        """What was written since the last call."""
        try:
            text = self.path.read_bytes()
        except OSError:
            return None
        if text == self._seen or not text.endswith(b"\n"):
            return None
        self._seen = text
        return Stepped(int(text))


class Tail:
    """Hands out each record beyond `after` once; after a resume has cut the file, only what is new."""

    def __init__(self, logs: Path, after: float = -1.0) -> None:
        self.path, self.position = logs / "metrics.jsonl", after
        self._file: BinaryIO | None = None  # kept open, so that no other file gets its inode number
        self._offset = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def read(self) -> list[Record]:
        """Records that have come since the last call; a line that is being written is left for the next."""
        try:
            file = self.path.open("rb")
        except FileNotFoundError:
            return []
        now = os.fstat(file.fileno())
        same = self._file is not None and os.path.samestat(os.fstat(self._file.fileno()), now)
        if not same or now.st_size < self._offset:
            self._offset = 0
        self.close()
        self._file = file
        file.seek(self._offset)
        text = file.read()
        whole = text[: text.rfind(b"\n") + 1]
        self._offset += len(whole)
        records = [record for line in whole.splitlines() if (record := parse(line))]
        fresh = [record for record in records if position(record) > self.position]
        if fresh:
            self.position = max(map(position, fresh))
        return fresh
