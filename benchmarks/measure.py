"""CPU-seconds of whole process trees, between two marks that the program under test leaves in a file."""

import json
import os
import signal
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import psutil


class Speed(NamedTuple):
    images_per_cpu_s: float  # of the whole tree
    images_per_s: float


def tree_cpu_s(pid: int) -> float:
    """user + system of a process, its living descendants and those they have waited for."""
    total = 0.0
    for process in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]:
        try:
            total += sum(process.cpu_times()[:4])
        except psutil.NoSuchProcess:
            continue
    return total


def steady_speed(
    command: Sequence[str], marks: Path, first: int, last: int, batch: int, env: dict[str, str]
) -> Speed:
    """Start `command`, measure from step `first` to step `last` (records in `marks`), then end it."""
    marks.unlink(missing_ok=True)
    with marks.with_suffix(".log").open("w") as log:
        process = subprocess.Popen(
            command, env={**os.environ, **env}, stdout=log, stderr=log, start_new_session=True
        )
    try:
        samples = []
        for wanted in (first, last):
            step = _wait(process, marks, wanted)
            samples.append((step, tree_cpu_s(process.pid), time.perf_counter()))
        (step_0, cpu_0, wall_0), (step_1, cpu_1, wall_1) = samples
        images = (step_1 - step_0) * batch
        return Speed(images / (cpu_1 - cpu_0), images / (wall_1 - wall_0))
    finally:
        _end(process)


def _wait(process: subprocess.Popen, marks: Path, wanted: int) -> int:
    while True:
        steps = [json.loads(line)["step"] for line in _lines(marks)]
        if steps and steps[-1] >= wanted:
            return steps[-1]
        if process.poll() is not None:
            raise RuntimeError(
                f"{process.args!r} ended with {process.returncode}; see {marks.with_suffix('.log')}"
            )
        time.sleep(0.01)


def _lines(path: Path) -> list[str]:
    try:
        text = path.read_text()
    except FileNotFoundError:
        return []
    return text[: text.rfind("\n") + 1].splitlines()


def _end(process: subprocess.Popen) -> None:
    family = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    for member in [process, *family]:
        try:
            member.send_signal(signal.SIGKILL)
        except (psutil.NoSuchProcess, ProcessLookupError):
            continue
    process.wait()


def interleaved(
    variants: Mapping[str, Callable[[], Any]], rounds: int, says: Callable[[str], None]
) -> dict[str, list]:
    """Each variant once a round, the order turned by one from round to round."""
    results: dict[str, list] = {name: [] for name in variants}
    names = list(variants)
    for number in range(rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            results[name].append(variants[name]())
            says(f"round {number + 1}/{rounds} {name}: {results[name][-1]}")
    return results


def spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}
