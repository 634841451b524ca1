"""Commits of several ranks: what is compared, what is kept in memory, and who may prune."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peak import peak_bytes
from ranks import alone, run_ranks
from torch import nn

from vergence.platform.runs import commit as commits
from vergence.platform.schema import SCHEMA
from vergence.platform.train import record
from vergence.platform.train.engine import Engine
from vergence.platform.train.optim.config import OptimConfig
from vergence.platform.train.schedule import ScheduleConfig

DTYPES = (
    torch.bfloat16, torch.float16, torch.float32, torch.float64, torch.float8_e4m3fn, torch.complex64, torch.bool,
    torch.uint8, torch.int64,
)  # fmt: skip


class Net(nn.Module):
    """depth x width x width weights, and a bank of keys in bf16."""

    def __init__(self, width: int = 8, depth: int = 2) -> None:
        super().__init__()
        self.encoder = nn.Sequential(*(nn.Linear(width, width, bias=False) for _ in range(depth)))
        self.register_buffer("bank", torch.arange(12.0).view(3, 4).bfloat16())


@pytest.fixture(scope="module", autouse=True)
def _deepspeed_imported_once() -> None:
    import deepspeed  # noqa: F401  # the forked ranks inherit it


def engine_of(net: Any, zero: int) -> Engine:
    config = OptimConfig(name="adamw", lr=0.1, rule="none")
    return Engine(
        net,
        config,
        ScheduleConfig(),
        epochs=1,
        global_batch=4,
        zero=zero,
        precision="fp32",
        device=torch.device("cpu"),
    )


def job_in(folder: Path, keep: int = 3) -> Any:
    """The part of a job that committing needs, in a run folder whose lock the attempt "a" holds."""
    own(folder, "a")
    (folder / "commits").mkdir(exist_ok=True)
    return SimpleNamespace(run=folder, attempt="a", commit=commits.CommitConfig(keep=keep))


def own(folder: Path, attempt: str) -> None:
    holder = {"host": "h", "pid": 1, "started": 1, "attempt": attempt}
    (folder / "lock.json").write_text(json.dumps(holder))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_checksum_is_one_of_the_bytes_of_any_dtype(dtype: torch.dtype) -> None:
    tensor = torch.randint(0, 2, (3, 5, 4, 2), generator=torch.Generator().manual_seed(0)).to(dtype)
    assert record.checksum(tensor) == record.checksum(tensor.clone())
    other = tensor.clone()
    other.view(torch.uint8).view(-1)[-1] ^= 1
    assert record.checksum(other) != record.checksum(tensor)
    assert record.checksum(tensor[0, 0, 0, 0]) == record.checksum(tensor[0, 0, 0, 0].clone())
    assert record.checksum(tensor[:0]) == 0


def test_a_checksum_makes_no_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    for tensor in (torch.zeros(16 << 20), torch.zeros(8, 64, 128, 256).to(memory_format=torch.channels_last)):
        tensor += 1
        whole = record.checksum(tensor)
        with peak_bytes() as peak:
            assert record.checksum(tensor) == whole
        assert peak.above < 8 << 20, f"{peak.above >> 20} MiB beside 64"
    monkeypatch.setattr(record, "PIECE_BYTES", 1000)
    assert record.checksum(tensor) == whole


def _commit(rank: int, world: int, folder: Path) -> list[str | None]:
    """What went wrong with commits at stages 0 and 2 whose ranks agree, and with one whose ranks do not."""
    failures = []
    for step, zero in enumerate((0, 2)):
        engine = engine_of(Net(), zero)
        failures.append(record.committed(job_in(folder), engine, {"step": step, "counts": {}}))
        written = commits.newest_intact(folder / "commits")
        stored, state = commits.load_state(written), engine.state()
        assert written.step == step
        assert stored.keys() == state.keys()
        assert all(torch.equal(stored[name], state[name]) for name in state)
        assert stored["model.bank"].dtype == torch.bfloat16
    engine.module.bank[1, 2] += rank
    failures.append(record.committed(job_in(folder), engine, {"step": 2, "counts": {}}))
    assert commits.newest(folder / "commits").step == 1
    return failures


def test_ranks_commit_what_they_hold_alike_a_bank_in_bf16_too_and_nothing_else(tmp_path: Path) -> None:
    message = "the ranks differ in model.bank (1 tensors): this is a bug"
    assert run_ranks(_commit, 2, tmp_path) == [[None, None, message]] * 2


def _peaks(rank: int, world: int, folder: Path) -> list[float]:
    """Memory that a commit takes above what is there, in sizes of the state, at stages 0 and 2."""
    peaks = []
    for zero in (0, 2):
        job, engine = job_in(folder), engine_of(Net(width=1024, depth=8), zero)
        record.committed(job, engine, {"step": 2 * zero, "counts": {}})
        with peak_bytes() as peak:
            record.committed(job, engine, {"step": 2 * zero + 1, "counts": {}})
        peaks.append(peak.above / (8 * 1024**2 * 12))  # weights and two slots, fp32
    return peaks


def test_one_copy_of_the_state_is_made_on_rank_0_and_none_elsewhere(tmp_path: Path) -> None:
    first, second = run_ranks(_peaks, 2, tmp_path)
    assert max(first) < 1.2
    assert max(second) < 0.15  # a tensor is a 24th, and stage 2 has two of them at a time


@alone
def test_who_has_lost_the_run_while_committing_does_not_prune(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, engine, write = job_in(tmp_path, keep=1), engine_of(Net(), 0), commits.write

    def written_then_taken(*arguments: Any, **options: Any) -> Any:
        made = write(*arguments, **options)
        own(tmp_path, "b")
        return made

    (tmp_path / "run.json").write_text('{"id": "a1", "mlflow_run": "m"}')
    assert record.committed(job, engine, {"step": 1, "counts": {}}) is None
    assert commits.newest(tmp_path / "commits").manifest["run"] == {
        "schema": SCHEMA,
        "id": "a1",
        "mlflow_run": "m",
    }
    monkeypatch.setattr(commits, "write", written_then_taken)
    assert record.committed(job, engine, {"step": 2, "counts": {}}) is None
    assert len(list((tmp_path / "commits").glob("step-*"))) == 2
    monkeypatch.undo()
    own(tmp_path, "a")
    assert record.committed(job, engine, {"step": 3, "counts": {}}) is None
    assert len(list((tmp_path / "commits").glob("step-*"))) == 1


@alone
def test_records_of_steps_before_a_commit_are_on_the_disk_before_it(
    tmp_path: Path, disk_events: list[tuple[str, str]]
) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "metrics.jsonl").write_text('{"step": 0}\n')
    assert record.committed(job_in(tmp_path), engine_of(Net(), 0), {"step": 1, "counts": {}}) is None
    assert disk_events[0] == ("synced", str(tmp_path / "logs" / "metrics.jsonl"))
