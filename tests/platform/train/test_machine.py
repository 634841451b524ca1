"""What a machine offers, measured without a CUDA context."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from vergence.platform.train.machine import Machine, measure, weakest


def test_workers_share_the_host() -> None:
    alone, among_four = measure(1, gpus=False), measure(4, gpus=False)
    assert 0 < among_four.host_bytes < alone.host_bytes / 2
    assert alone.cpus == len(os.sched_getaffinity(0))
    assert alone.gpu_bytes is None


def test_the_weakest_has_what_every_machine_has() -> None:
    machines = [Machine(8, 100, 70, True), Machine(4, 200, 80, False)]
    assert weakest(machines) == Machine(4, 100, 70, False)
    assert weakest(machines[:1]) == machines[0]
    assert weakest([*machines, Machine(9, 900, None, True)]).gpu_bytes is None


@pytest.fixture
def nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A driver's tool that answers with the given lines."""

    def install(*lines: str) -> None:
        tool = tmp_path / "nvidia-smi"
        tool.write_text("#!/bin/sh\n" + "".join(f"echo '{line}'\n" for line in lines))
        tool.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)

    return install


def test_gpus_are_asked_through_their_driver_and_the_smallest_counts(nvidia_smi: Callable[..., None]) -> None:
    nvidia_smi("81079, 9.0", "40536, 8.0")
    assert measure(2, gpus=True)[2:] == (40536 << 20, True)
    nvidia_smi("16160, 7.0")
    assert measure(2, gpus=True)[2:] == (16160 << 20, False)


@pytest.mark.parametrize("lines", [[], ["[N/A], [N/A]"], ["No devices were found"]])
def test_a_driver_that_does_not_answer_is_no_gpu(nvidia_smi: Callable[..., None], lines: list[str]) -> None:
    nvidia_smi(*lines)
    assert measure(2, gpus=True)[2:] == (None, False)


def test_to_ask_for_gpus_loads_no_torch() -> None:
    code = "import sys; from vergence.platform.train.machine import measure; measure(1, True); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
