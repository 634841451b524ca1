"""The quickstart, whole, in a state folder of its own, killed once on the way."""

import json
import subprocess
import sys
import time
from pathlib import Path

from PIL import Image
from runs_for_real import environment, kill_everything, wait_for_step


def test_quickstart_survives_a_kill_and_is_quick_when_done(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "vergence.pipelines.quickstart"]
    home = tmp_path / "home"
    with (tmp_path / "log").open("w") as log:
        first = subprocess.Popen(
            command, env=environment(home), stdout=log, stderr=log, start_new_session=True
        )
    wait_for_step(home / "quickstart", 60, first)
    kill_everything(first)

    second = subprocess.run(
        command, env=environment(home), capture_output=True, text=True, timeout=400, check=False
    )
    assert second.returncode == 0, second.stderr
    assert "run quickstart (goes on at step" in second.stderr
    for part in ("test", "moved"):
        results = json.loads((home / "quickstart" / f"report-{part}.json").read_text())["results"]
        knn = {who: figures["knn-v1"] for who, figures in results.items()}
        assert knn["encoder"]["top1"] > knn["as initialised"]["max"]
    assert knn["encoder"]["top1"] > knn["raw pixels"]["top1"] + 0.1  # moved
    with Image.open(home / "quickstart" / "look" / "map.png") as drawn:
        assert drawn.width > 800

    begin = time.monotonic()
    third = subprocess.run(
        command, env=environment(home), capture_output=True, text=True, timeout=100, check=False
    )
    assert third.returncode == 0, third.stderr
    assert time.monotonic() - begin < 60
    assert "nothing to do" in third.stderr
    assert figures(third.stdout) == figures(second.stdout)


def figures(said: str) -> list[str]:
    """The two lines of the summary with the kNN."""
    lines = [line for line in said.splitlines() if "(as initialised" in line]
    assert len(lines) == 2
    return lines
