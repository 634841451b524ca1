"""The layout: a pure function of sizes, number of ranks and machine, the same wherever it is called."""

import pickle
from typing import Any

import pytest

from vergence.platform.errors import UserError
from vergence.platform.runs.facts import RunFacts
from vergence.platform.train.exact import BatchConfig
from vergence.platform.train.layout import LayoutSpec, _as_before, layout
from vergence.platform.train.machine import Machine
from vergence.platform.train.norms import NormConfig

LARGE = Machine(cpus=8, host_bytes=10**9, gpu_bytes=None, native_bf16=True)
BOTH = {"fp32": 1000, "bf16": 500}


def spec(
    *, batch: dict[str, Any] | None = None, norm: dict[str, Any] | None = None, **changes: Any
) -> LayoutSpec:
    given: dict[str, Any] = {
        "shuffles": False,
        "precision": "fp32",
        "on_gpu": False,
        "bytes_per_sample": BOTH,
        **changes,
    }
    return LayoutSpec(
        BatchConfig(global_batch=128, **(batch or {})),
        NormConfig(**({"group": 8} if norm is None else norm)),
        **given,
    )


def test_the_share_is_one_forward_where_memory_allows() -> None:
    found = layout(spec(), 2, LARGE)
    assert (found.share, found.micro, found.regime, found.precision) == (64, 64, "one", "fp32")
    assert (found.norm_group, found.norm_span) == (8, None)
    assert (found.num_bytes, found.budget) == (2 * 1000 * 64, 6 * 10**8)


def test_less_memory_gives_two_passes_of_smaller_micro_batches() -> None:
    small = LARGE._replace(host_bytes=60_000)
    assert layout(spec(), 2, small)[:3] == (64, 16, "two-pass")
    assert layout(spec(), 8, small)[:3] == (16, 16, "one")  # other ranks, the same call
    assert layout(spec(precision="bf16"), 2, small)[:3] == (64, 32, "two-pass")


def test_a_gpu_run_fits_the_gpu_and_not_the_host() -> None:
    machine = LARGE._replace(gpu_bytes=60_000)
    assert layout(spec(on_gpu=True), 2, machine).micro == 16


@pytest.mark.parametrize(
    "open_setting", [{"precision": "auto"}, {"batch": {"micro": 16}}, {"batch": {"regime": "kept"}}]
)
def test_a_gpu_that_nobody_can_measure_needs_the_sizes_from_the_recipe(open_setting: dict[str, Any]) -> None:
    given = {"batch": {"micro": 16, "regime": "kept"}}
    assert layout(spec(on_gpu=True, **given), 2, LARGE)[:3] == (64, 16, "kept")
    with pytest.raises(UserError, match=r"no GPU can be measured.*give precision=bf16 or fp32, batch\.micro"):
        layout(spec(on_gpu=True, **(given | open_setting)), 2, LARGE)


@pytest.mark.parametrize(
    ("asked", "kept", "native", "expected"),
    [
        ("auto", None, True, "bf16"),
        ("auto", None, False, "fp32"),
        ("auto", "fp32", True, "fp32"),  # a run goes on as it began, on any machine
        ("fp32", None, True, "fp32"),
    ],
)
def test_precision_is_asked_for_kept_or_what_the_machine_does_natively(
    asked: str, kept: str | None, native: bool, expected: str
) -> None:
    found = layout(
        spec(precision=asked, kept=RunFacts(precision=kept)), 2, LARGE._replace(native_bf16=native)
    )
    assert found.precision == expected


def test_shuffling_stays_within_the_micro_batch_or_the_span_of_before() -> None:
    shuffling: dict[str, Any] = {"shuffles": True, "norm": {"group": 4}, "batch": {"micro": 32}}
    assert layout(spec(**shuffling), 2, LARGE).norm_span == 32
    assert layout(spec(**shuffling, kept=RunFacts(span=16)), 2, LARGE).norm_span == 16
    assert layout(spec(shuffles=True, norm={}), 2, LARGE).norm_group == 32  # the default of shuffling methods
    assert layout(spec(norm={}), 2, LARGE).norm_group == "global"


@pytest.mark.parametrize(
    ("given", "ranks", "message"),
    [
        ({}, 3, "batch.global 128 does not divide by 3 workers; nearest: 126, 129"),
        ({"batch": {"micro": 24}}, 2, "batch.micro 24 does not divide a worker's share of 64"),
        ({"norm": {"group": 24}}, 2, "norm.group 24 does not divide"),
    ],
)
def test_what_does_not_divide_is_refused_with_the_nearest(
    given: dict[str, Any], ranks: int, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        layout(spec(**given), ranks, LARGE)


def test_a_rank_that_gets_it_pickled_comes_to_the_same() -> None:
    given, machine = pickle.loads(pickle.dumps((spec(kept=RunFacts(micro=16, regime="kept")), LARGE)))
    assert layout(given, 2, machine) == layout(spec(kept=RunFacts(micro=16, regime="kept")), 2, LARGE)


TWO_PASS = {"regime": "two-pass", "micro": 16}


@pytest.mark.parametrize(
    ("given", "kept", "share", "expected"),
    [
        ({}, {}, 64, ("auto", None)),
        ({}, TWO_PASS, 64, ("two-pass", 16)),
        ({}, TWO_PASS, 24, ("two-pass", None)),  # other workers: 16 no longer divides the share
        ({"micro": 32}, TWO_PASS, 64, ("two-pass", 32)),
        ({"regime": "kept"}, TWO_PASS, 64, ("kept", 16)),
        ({}, {"regime": "one", "micro": 64}, 128, ("one", None)),
        ({"micro": 32}, {"regime": "one", "micro": 64}, 64, ("auto", 32)),  # rules out one forward
    ],
)
def test_regime_and_micro_batch_stay_where_they_fit(
    given: dict[str, Any], kept: dict[str, Any], share: int, expected: tuple[str, int | None]
) -> None:
    config = _as_before(BatchConfig(global_batch=128, **given), RunFacts(**kept), share)
    assert (config.regime, config.micro) == expected
