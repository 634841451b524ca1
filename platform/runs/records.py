"""Reading a run's metrics.jsonl while it grows."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

_WITHIN_A_STEP = {"first_step": 0.1, "monitor": 0.3}  # by event; metrics come between


def position(record: Mapping[str, Any]) -> float:
    """Where a record stands in the run: its step, and its place among the records of that step."""
    return float(record["step"] + _WITHIN_A_STEP.get(record.get("event", ""), 0.2))


def parse(line: bytes) -> dict[str, Any] | None:
    """The record in a line of metrics.jsonl; None if a kill or a full disk has left only a part of it."""
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) and isinstance(record.get("step"), int) else None


class Tail:
    """Hands out each record beyond `after` once; after a resume has cut the file, only what is new."""

    def __init__(self, logs: Path, after: float = -1.0) -> None:
        self.path, self.position = logs / "metrics.jsonl", after
        self._file: BinaryIO | None = None  # kept open, so that no other file gets its inode number
        self._offset = 0

    def read(self) -> list[dict[str, Any]]:
        """Records that have come since the last call; a line that is being written is left for the next."""
        try:
            file = self.path.open("rb")
        except FileNotFoundError:
            return []
        now = os.fstat(file.fileno())
        same = self._file is not None and os.path.samestat(os.fstat(self._file.fileno()), now)
        if not same or now.st_size < self._offset:
            self._offset = 0
        if self._file is not None:
            self._file.close()
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
