"""Reading a run's metrics.jsonl while it grows."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_WITHIN_A_STEP = {"first_step": 0.1, "monitor": 0.3}  # by event; metrics come between


def position(record: Mapping[str, Any]) -> float:
    """Where a record stands in the run: its step, and its place among the records of that step."""
    return float(record["step"] + _WITHIN_A_STEP.get(record.get("event", ""), 0.2))


class Tail:
    """Hands out each record beyond `after` once; after a resume has cut the file, only what is new."""

    def __init__(self, logs: Path, after: float = -1.0) -> None:
        self.path, self.position = logs / "metrics.jsonl", after
        self._inode, self._offset = 0, 0

    def read(self) -> list[dict[str, Any]]:
        """Records that have come since the last call; a line that is being written is left for the next."""
        try:
            with self.path.open("rb") as file:
                inode = self.path.stat().st_ino
                if inode != self._inode:
                    self._inode, self._offset = inode, 0
                file.seek(self._offset)
                text = file.read()
        except FileNotFoundError:
            return []
        whole = text[: text.rfind(b"\n") + 1]
        self._offset += len(whole)
        records = [json.loads(line) for line in whole.splitlines()]
        fresh = [record for record in records if position(record) > self.position]
        if fresh:
            self.position = max(map(position, fresh))
        return fresh
