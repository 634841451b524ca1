"""Searches as real Ray Tune experiments whose trials only compute: what a driver of such a search does, as a script.

python searches_for_real.py FOLDER: prints JSON {search: trials} and what is free of the session afterwards.
"""

import json
import os
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

from vergence.platform.search.config import parse_search
from vergence.platform.search.trials import Result, read_trial, read_trials, write_trial
from vergence.platform.search.tuner import Step, search

SPACE = {"x": {"choice": [0.1, 0.5, 0.9, 0.2, 0.8, 0.3, 0.7, 0.4, 0.6]}}
SEARCHES: dict[str, dict[str, Any]] = {
    "halving": {"space": SPACE, "scheduler": {"name": "halving"}, "budget": {"epochs": 9}},
    "asha": {"space": SPACE, "scheduler": {"name": "asha"}, "budget": {"epochs": 9}},
    "tpe": {
        "space": {"x": {"uniform": [0, 1]}, "y": {"choice": ["a", "b"]}},
        "algorithm": "tpe",
        "budget": {"epochs": 2, "trials": 5},
    },
}


def train(folder: Path, number: int, epochs: int) -> Step:
    """A trial of score x + epochs / 100, whose file says how often it was trained; some die."""
    trial = read_trial(folder, number)
    if trial.parameters["x"] == 0.3:
        os._exit(9)
    if trial.parameters["x"] == 0.4:
        raise RuntimeError("no such thing")
    done = trial.at(epochs)
    if done is None:
        with (folder / f"{number:03d}" / "trained").open("a") as file:
            file.write(f"{epochs}\n")
        done = Result(
            epochs=epochs, score=trial.parameters["x"] + epochs / 100, loss=1.0, ended_s=time.time()
        )
        last = epochs == json.loads((folder / "config.json").read_text())["budget"]["epochs"]
        trial = trial.but(results=(*trial.results, done), verdict="finished" if last else "open")
        write_trial(folder, trial)
    assert done.score is not None
    return Step(epochs, done.score, over=trial.verdict != "open")


def free_again(timeout_s: float = 30.0) -> tuple[float, float]:
    """CPUs that are free and CPUs that there are, as soon as they are the same."""
    import ray

    deadline = time.monotonic() + timeout_s
    while True:
        free, total = (each.get("CPU", 0.0) for each in (ray.available_resources(), ray.cluster_resources()))
        if free == total or time.monotonic() > deadline:
            return free, total
        time.sleep(0.2)


def main() -> None:
    import ray

    home = Path(sys.argv[1])
    ray.init(
        address="local",
        num_cpus=3,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=100 << 20,
    )
    found: dict[str, Any] = {}
    for name, raw in SEARCHES.items():
        folder = home / name
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps(raw))
        config = parse_search(raw, name)
        search(folder, config, partial(train, folder), concurrent=2, is_asked=lambda: False, attempt="first")
        found[name] = [trial.model_dump() for trial in read_trials(folder)]
    found["free"], found["total"] = free_again()
    print(json.dumps(found))


if __name__ == "__main__":
    main()
