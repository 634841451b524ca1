"""Gradients and running statistics: equal for any number of ranks and micro-batches, in float64.

The tolerance per tensor is 1e-9 * max(|g|, 1e-3 * |all gradients|). Nothing is rescaled before comparing.
"""

import copy
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from exact_batches import BLANK, GROUP, MICRO, G, Keys, Losses, Out, Toy, build, global_batch, micro_batches
from ranks import run_ranks
from torch import Tensor

from vergence.methods.catalog import METHODS
from vergence.methods.method import Batch
from vergence.platform.train.exact import Regime, accumulate
from vergence.platform.train.norms import install


def step(rank: int, world_size: int, name: str, group: Any, micro: int, regime: Any) -> dict[str, np.ndarray]:
    """Averaged gradients, running statistics, loss and share-level outputs of one step."""
    method = build(name)
    norms = install(method, group, share=G // world_size)
    share = G // world_size
    calls: list[bool] = []

    def backward(scalar: Tensor, last: bool) -> None:
        calls.append(last)
        scalar.backward()

    micros = micro_batches(
        rank,
        world_size,
        micro,
        shuffles=method.needs.shuffle,
        blank=name == "toy-blank",
        crops="-crops" in name,
    )
    if name == "cmc":  # pixels in [0, 1]
        micros = [batch._replace(views=[view.sigmoid() for view in batch.views]) for batch in micros]
    result = accumulate(
        method,
        micros,
        seeds=range(rank * share, (rank + 1) * share, micro),
        regime=regime,
        norms=norms,
        autocast=nullcontext,
        backward=backward,
        proceed=lambda loss: bool(loss.isfinite()),
    )
    assert result is not None
    assert calls == [False] * (len(calls) - 1) + [True]
    alike = [rank * share + place for place in norms.alike_samples()]
    own = range(rank * share, (rank + 1) * share) if name == "toy-blank" and group == GROUP else ()
    assert alike == [place for place in BLANK if place in own]
    norms.update()
    grads = {f"grad.{n}": p.grad for n, p in method.named_parameters() if p.requires_grad}
    loss = result.losses.loss.clone()
    for value in [*grads.values(), loss]:
        if world_size > 1:
            dist.all_reduce(value)
        value /= world_size
    running = {n: b for n, b in method.named_buffers() if "running" in n or "tracked" in n}
    return {n: v.numpy().copy() for n, v in {**grads, **running, "loss": loss, "out": result.out[0]}.items()}


def cases(rank: int, world_size: int, todo: list[tuple]) -> list[dict[str, np.ndarray]]:
    return [step(rank, world_size, *case) for case in todo]


def assert_equal(got: dict[str, np.ndarray], expected: dict[str, np.ndarray], what: str) -> None:
    everything = np.sqrt(sum((v**2).sum() for n, v in expected.items() if n.startswith("grad.")))
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        if name == "out":
            continue
        scale = np.linalg.norm(value)
        if name.startswith("grad."):
            scale = max(scale, 1e-3 * everything)
        error = np.linalg.norm(got[name] - value)
        assert error <= 1e-9 * max(scale, 1e-3), f"{what}: {name} is off by {error / scale:.1e}"


# Every method of the catalog, so that none is left out, with groups that let the batch be cut; those whose own setting it
# is with global norms too. Where a method takes smaller views, with some.
BOTH: list[Any] = [GROUP, "global"]
GLOBAL = (
    "inva_spread", "simclr", "contrastive_clustering", "byol", "simsiam", "barlow_twins", "swav", "dino", "mocov3", "vicreg",
    "simclr-crops", "byol-crops", "barlow_twins-crops",
)  # fmt: skip
CROPPED = [
    f"{name}-crops"
    for name, (_, method) in METHODS.items()
    if method.needs.views is not None and method.needs.views.allows([8, 8, 6, 6])
]
FORMED = [
    "mocov2-symmetric", "mocov2-symmetric-crops",
    "barlow_twins-predictor", "barlow_twins-asymmetric", "barlow_twins-asymmetric-crops",
]  # fmt: skip
SETTINGS: dict[str, list[Any]] = {
    name: BOTH if name.startswith("toy") or name in GLOBAL else [GROUP]
    for name in ("toy", "toy-blank", *METHODS, *CROPPED, *FORMED)
}


@pytest.fixture(scope="module")
def references() -> dict[tuple, dict[str, np.ndarray]]:
    """One process, one forward."""
    return {(n, g): step(0, 1, n, g, G, "one") for n, groups in SETTINGS.items() for g in groups}


@pytest.mark.parametrize("world_size", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_gradients_do_not_depend_on_the_number_of_ranks(references: Any, world_size: int) -> None:
    share = G // world_size
    todo = [(name, group, share, "one") for name, group in references]
    todo += [(name, GROUP, 4, regime) for name in ("toy", "toy-blank") for regime in ("kept", "two-pass")]
    for rank, results in enumerate(run_ranks(cases, world_size, todo)):
        for case, got in zip(todo, results):
            expected = references[case[:2]]
            assert_equal(got, expected, f"{case} on rank {rank} of {world_size}")
            rows = slice(rank * share, (rank + 1) * share)
            np.testing.assert_allclose(got["out"], expected["out"][rows], rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("name", list(SETTINGS))
@pytest.mark.parametrize("regime", ["kept", "two-pass"])
def test_gradients_do_not_depend_on_micro_batches(references: Any, name: str, regime: str) -> None:
    expected = references[name, GROUP]
    for micro in (MICRO, G // 2) if name == "toy" else (MICRO,):
        assert_equal(step(0, 1, name, GROUP, micro, regime), expected, f"{name} {regime} {micro}")


def test_the_settings_are_told_apart(references: Any) -> None:
    """The comparison can fail: other norm groups are another objective."""
    with pytest.raises(AssertionError, match="is off by"):
        assert_equal(references["toy", GROUP], references["toy", "global"], "toy")


def test_one_pass_equals_plain_torch_without_any_of_this(references: Any) -> None:
    method = build("toy")
    (batch,) = micro_batches(0, 1, G, shuffles=False)
    out, targets = method(batch), method.targets(batch)
    method.criterion(out, targets, batch._replace(views=())).loss.backward()
    plain = {f"grad.{n}": p.grad for n, p in method.named_parameters() if p.requires_grad}
    plain |= dict(method.named_buffers())
    reference = references["toy", "global"]
    kept = {n: v for n, v in reference.items() if n in plain}
    assert_equal({n: v.numpy() for n, v in plain.items()}, kept, "plain")


def test_dropout_is_the_same_in_both_passes_and_on_any_rank() -> None:
    micro = 4
    kept = step(0, 1, "toy-dropout", GROUP, micro, "kept")
    assert_equal(step(0, 1, "toy-dropout", GROUP, micro, "two-pass"), kept, "dropout")
    for (got,) in run_ranks(cases, 2, [("toy-dropout", GROUP, micro, "two-pass")]):
        assert_equal(got, kept, "dropout on 2 ranks")
    without = step(0, 1, "toy", GROUP, micro, "two-pass")
    assert not np.allclose(kept["grad.head.0.weight"], without["grad.head.0.weight"])


class Watched(Toy):
    """Notes for each call whether it runs under autocast, and with graph."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, bool, bool]] = []

    def note(self, part: str) -> None:
        self.calls.append((part, torch.is_autocast_enabled("cpu"), torch.is_grad_enabled()))

    def forward(self, batch: Batch) -> Out:
        self.note("forward")
        return super().forward(batch)

    def targets(self, batch: Batch) -> Keys:
        self.note("targets")
        return super().targets(batch)

    def criterion(self, out: Out, targets: Keys, batch: Batch) -> Losses:
        self.note("criterion")
        self.seen = batch
        return super().criterion(out, targets, batch)


@pytest.mark.parametrize("regime", ["kept", "two-pass"])
def test_what_each_part_of_a_method_sees(regime: Any) -> None:
    method = Watched()
    micros = [
        b._replace(views=[v.float() for v in b.views], fields={"weight": b.fields["weight"].float()})
        for b in micro_batches(0, 1, MICRO, shuffles=False)
    ]
    accumulate(
        method,
        micros,
        seeds=range(0, G, MICRO),
        regime=regime,
        norms=install(method, GROUP, share=G),
        autocast=lambda: torch.autocast("cpu", torch.bfloat16),
        backward=lambda scalar, last: scalar.backward(),
        proceed=lambda loss: True,
    )
    first = [("forward", True, regime == "kept"), ("targets", True, False)] * 3
    again = [("forward", True, True)] * 3 if regime == "two-pass" else []
    assert method.calls == [*first, ("criterion", False, True), *again]
    assert method.seen.ids.tolist() == list(range(G))
    assert torch.equal(method.seen.fields["weight"], global_batch()["weight"].float())


@pytest.mark.parametrize("regime", ["kept", "two-pass"])
def test_refused_step_leaves_no_trace(regime: Any) -> None:
    method = build("toy")
    norms = install(method, GROUP, share=G)
    before = copy.deepcopy(method.state_dict())
    result = accumulate(
        method,
        micro_batches(0, 1, MICRO, shuffles=False),
        seeds=range(0, G, MICRO),
        regime=regime,
        norms=norms,
        autocast=nullcontext,
        backward=lambda scalar, last: pytest.fail("backward ran"),
        proceed=lambda loss: False,
    )
    norms.update()
    assert result is None
    assert all(torch.equal(method.state_dict()[name], value) for name, value in before.items())
    assert all(p.grad is None for p in method.parameters())


def test_bf16_weights_cached_without_graph_do_not_serve_the_pass_with_graph() -> None:
    grads = {}
    regimes: list[Regime] = ["kept", "two-pass"]
    for regime in regimes:
        method = build("toy").float()
        norms = install(method, GROUP, share=G)
        batches = [
            b._replace(views=[v.float() for v in b.views], fields={"weight": b.fields["weight"].float()})
            for b in micro_batches(0, 1, MICRO, shuffles=False)
        ]
        accumulate(
            method,
            batches,
            seeds=range(0, G, MICRO),
            regime=regime,
            norms=norms,
            autocast=lambda: torch.autocast("cpu", torch.bfloat16),
            backward=lambda scalar, last: scalar.backward(),
            proceed=lambda loss: True,
        )
        grads[regime] = torch.cat([p.grad.flatten() for p in method.parameters() if p.requires_grad])
    assert F.cosine_similarity(grads["kept"], grads["two-pass"], dim=0) > 0.999
