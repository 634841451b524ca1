"""How an attempt ended: left by a rank, read by the driver and by whoever looks at the run later."""

import json
import os
from pathlib import Path
from typing import Literal, NamedTuple

_BYTES = 4096


class Outcome(NamedTuple):
    """How the rank loop ended; `paused`: where it was to pause; `failed`: of what a restart would not mend."""

    status: Literal["finished", "paused", "interrupted", "failed"]
    message: str = ""


def outcome_file(run: Path, attempt: str) -> Path:
    """Where the ranks of an attempt leave its outcome, in the run's folder."""
    return run / "logs" / f"outcome.{attempt}.json"


def reserve_outcome(path: Path) -> None:
    """Make room for the outcome, so that a full disk can be told; by the driver, before the ranks start."""
    path.write_bytes(b" " * _BYTES)


def leave_outcome(path: Path, outcome: Outcome) -> None:
    """Leave the outcome of an attempt for the driver, in the room that was reserved; the first one counts."""
    if read_outcome(path) is None:
        message = outcome.message
        while len(text := json.dumps(outcome._replace(message=message)._asdict())) > _BYTES:
            message = message[: len(message) // 2]
        descriptor = os.open(path, os.O_WRONLY)
        try:
            os.pwrite(descriptor, text.ljust(_BYTES).encode(), 0)
        finally:
            os.close(descriptor)


def read_outcome(path: Path) -> Outcome | None:
    """The outcome that a rank has left there."""
    try:
        return Outcome(**json.loads(path.read_text()))
    except (FileNotFoundError, ValueError):
        return None


def last_outcome(run: Path) -> Outcome | None:
    """The outcome of a run's newest attempt; None if it was killed, or goes on."""
    paths = (run / "logs").glob("outcome.*.json")
    newest = max(paths, key=lambda path: path.stat().st_mtime, default=None)
    return None if newest is None else read_outcome(newest)
