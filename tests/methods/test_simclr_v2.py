import math

import pytest
import torch
import torch.nn.functional as F
from small_methods import normal, small_method, two_views, whole
from torch import Tensor

from vergence.methods.simclr import Embeddings
from vergence.methods.simclr_v2 import SimCLRV2, SimCLRV2Config, Targets

NONE = Targets(torch.empty(0))


def loss_of(z: Tensor, memory: Tensor, temperature: float = 0.2) -> Tensor:
    size, dim = memory.shape
    method: SimCLRV2 = small_method("simclrv2", memory_size=size, embed_dim=dim, temperature=temperature)
    if method.memory is not None:
        method.memory.keys.copy_(memory)
    return method.criterion(Embeddings(z), NONE, whole(len(z))).loss


@pytest.mark.parametrize("size", [0, 7])
def test_loss_equals_float64_transcription(size: int) -> None:
    n, T = 4, 0.3
    z, memory = normal(n, 2, 5) * 3 + 1, F.normalize(normal(size, 5, seed=1), dim=1)
    rows = F.normalize(torch.cat([z[:, 0], z[:, 1]]), dim=1).tolist()

    def e(i: int, key: list[float]) -> float:
        return math.exp(sum(a * b for a, b in zip(rows[i], key, strict=True)) / T)

    total = 0.0
    for i in range(2 * n):
        others = sum(e(i, rows[k]) for k in range(2 * n) if k != i) + sum(e(i, m) for m in memory.tolist())
        total -= math.log(e(i, rows[(i + n) % (2 * n)]) / others)
    assert loss_of(z, memory, T).item() == pytest.approx(total / (2 * n), abs=1e-10)


def test_closed_forms() -> None:
    N, K, T = 8, 20, 0.2
    collapsed, same = (
        torch.ones(N, 2, 32, dtype=torch.float64),
        torch.ones(K, 32, dtype=torch.float64) / 32**0.5,
    )
    assert loss_of(collapsed, same, T).item() == pytest.approx(math.log(2 * N - 1 + K), abs=1e-6)
    unit = torch.eye(32, dtype=torch.float64)
    ideal = loss_of(unit[:N, None].repeat(1, 2, 1), unit[N : N + K], T).item()
    assert ideal == pytest.approx(math.log(1 + (2 * N - 2 + K) * math.exp(-1 / T)), abs=1e-9)


def test_gradient_by_finite_differences() -> None:
    memory = F.normalize(normal(6, 8, seed=1), dim=1)
    assert torch.autograd.gradcheck(lambda z: loss_of(z, memory), normal(4, 2, 8).requires_grad_())


def test_memory_holds_what_the_moving_average_made_of_full_size_views_after_the_loss() -> None:
    method, batch = small_method("simclrv2"), two_views(3, small=2)
    old = [p.clone() for p in method.teacher.parameters()]
    before = method.memory.keys.clone()
    with torch.no_grad():
        for p in method.projector.parameters():
            p.add_(1)
    out, targets = method(batch), method.targets(batch)
    assert targets.k_btd.shape == (3, 2, 5)
    method.criterion(out, targets, whole(3))
    assert torch.equal(method.memory.keys, before)
    method.after_step(out, targets, batch)
    assert torch.equal(method.memory.keys[:6], targets.k_btd.flatten(0, 1))
    assert torch.equal(method.memory.keys[6:], before[6:])
    student = [*method.encoder.parameters(), *method.projector.parameters()]
    for t, before_step, s in zip(method.teacher.parameters(), old, student, strict=True):
        torch.testing.assert_close(t, 0.9 * before_step + 0.1 * s)


def test_without_memory_there_is_no_second_network() -> None:
    method = small_method("simclrv2", memory_size=0)
    assert not [name for name in method.state_dict() if name.startswith(("teacher", "memory"))]
    method.after_step(method(two_views(3)), method.targets(two_views(3)), two_views(3))


def test_published_projector_and_defaults() -> None:
    layers, last = small_method("simclrv2").projector
    assert [type(layer).__name__ for layer in layers] == ["Linear", "BatchNorm1d", "ReLU"] * 2 + ["Linear"]
    assert all(layer.bias is None for layer in layers[::3])
    assert last.bias is None
    config = SimCLRV2Config()
    assert (config.hidden_dim, config.embed_dim, config.temperature, config.momentum) == (
        2048,
        128,
        0.1,
        0.999,
    )
    assert config.memory_size == 0
