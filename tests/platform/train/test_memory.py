"""Memory of a forward against a hand count, and what is chosen from it."""

from typing import Any

import pytest
import torch
from torch import nn

from vergence.methods.method import Batch
from vergence.platform.errors import UserError
from vergence.platform.train.exact import BatchConfig
from vergence.platform.train.memory import activation_bytes_per_sample, choose


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(100, 50), nn.BatchNorm1d(50), nn.Sigmoid(), nn.Dropout(), nn.Linear(50, 10)
        )

    def forward(self, batch: Batch) -> torch.Tensor:
        return self.layers(batch.views[0])


def batch(n: int) -> Batch:
    return Batch(views=[torch.randn(n, 100)], ids=torch.arange(n))


def test_saved_bytes_are_the_inputs_of_each_layer() -> None:
    net: Any = Net()
    # Saved: input of the first Linear (100), of the norm (50), output of the sigmoid = input of the last (50).
    assert activation_bytes_per_sample(net, batch) == 4 * (100 + 50 + 50)
    assert net.training


class Frozen(Net):
    """Its first layer saves nothing; the second view goes to nobody."""

    def __init__(self) -> None:
        super().__init__()
        self.layers[0].requires_grad_(False)


def test_views_count_whether_or_not_the_graph_keeps_them() -> None:
    def two_views(n: int) -> Batch:
        return Batch(views=[torch.randn(n, 100), torch.randn(n, 30)], ids=torch.arange(n))

    frozen: Any = Frozen()
    assert activation_bytes_per_sample(frozen, two_views) == 4 * (100 + 30 + 50 + 50)


@pytest.mark.parametrize(
    ("config", "budget", "expected"),
    [
        ({}, 10_000, (64, "one")),
        ({}, 2 * 10 * 33, (32, "two-pass")),
        ({}, 1, (8, "two-pass")),  # nothing fits: the smallest that the norm groups allow
        ({"micro": 16}, 10_000, (16, "kept")),
        ({"micro": 16}, 1_000, (16, "two-pass")),
        ({"micro": 16, "regime": "two-pass"}, 10_000, (16, "two-pass")),
        ({"regime": "one"}, 1, (64, "one")),
    ],
)
def test_choice_follows_the_budget(config: dict, budget: int, expected: tuple[int, str]) -> None:
    choice = choose(
        BatchConfig(global_batch=128, **config), share=64, group=8, bytes_per_sample=10, budget=budget
    )
    assert (choice.micro, choice.regime) == expected
    assert choice.num_bytes == 20 * (choice.micro if choice.regime == "two-pass" else 64)


def test_group_over_the_share_needs_one_forward() -> None:
    choice = choose(BatchConfig(global_batch=128), share=64, group=128, bytes_per_sample=10, budget=1)
    assert choice.micro == 64


def test_span_bounds_the_choice() -> None:
    choice = choose(BatchConfig(global_batch=128), share=64, group=8, bytes_per_sample=10, budget=1, span=32)
    assert choice.micro == 32


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"micro": 24}, "batch.micro 24 does not divide a worker's share of 64 samples; nearest: 16, 32"),
        ({"micro": 16, "regime": "one"}, "use batch.micro=64"),
    ],
)
def test_contradictions_are_refused(config: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        choose(BatchConfig(global_batch=128, **config), share=64, group=8, bytes_per_sample=10, budget=1)
