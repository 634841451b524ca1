"""Reading a run's metrics.jsonl while it grows."""

import json
from pathlib import Path
from typing import Any


class Tail:
    """Hands out each record once; after a resume has cut the file, those of new steps only."""

    def __init__(self, logs: Path, after_step: int = -1) -> None:
        self.path, self.step = logs / "metrics.jsonl", after_step
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
        fresh = [record for record in records if record["step"] > self.step]
        if fresh:
            self.step = max(record["step"] for record in fresh)
        return fresh
