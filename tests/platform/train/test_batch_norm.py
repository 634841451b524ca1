"""Statistics, output and gradient of batch normalisation against float64, where torch's own kernels lose digits."""

from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from ranks import run_ranks
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from vergence.platform.train.batch_norm import Groups, Normalise, over_ranks, statistics
from vergence.platform.train.norms import install

EPS = 1e-5


class Case(NamedTuple):
    shape: tuple[int, ...]
    mean: float  # of x, in its standard deviations
    dtype: torch.dtype = torch.float32
    channels_last: bool = True


LARGE = (256, 16, 32, 32)  # 262,144 rows
CASES = {
    "channels last": Case(LARGE, 0),
    "channels last, far from zero": Case(LARGE, 10),
    "channels last, bf16": Case(LARGE, 0, torch.bfloat16),
    "channels last, far from zero, bf16": Case(LARGE, 10, torch.bfloat16),
    "contiguous, far from zero": Case((64, 16, 32, 32), 10, channels_last=False),
    "contiguous, far from zero, bf16": Case((64, 16, 32, 32), 10, torch.bfloat16, channels_last=False),
    "tiles of unequal length": Case((255, 24, 7, 7), 10),
    "rows that cannot stand side by side": Case((1009, 3, 1, 1), 10),
    "a projector": Case((4096, 128), 10),
    "a projector, bf16": Case((4096, 128), 10, torch.bfloat16),
    "sequences": Case((64, 12, 100), 10),
}


def make(case: Case) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x, gradient of y (of one sign more than the other, as behind a ReLU), weight, bias."""
    generator = torch.Generator().manual_seed(0)
    x, dy = (torch.randn(*case.shape, generator=generator) + shift for shift in (case.mean, 0.5))
    if len(case.shape) == 4 and case.channels_last:
        x, dy = (v.contiguous(memory_format=torch.channels_last) for v in (x, dy))
    weight = 0.5 + torch.rand(case.shape[1], generator=generator)
    return x.to(case.dtype), dy.to(case.dtype), weight, torch.zeros(case.shape[1])


def in_float64(x: Tensor, dy: Tensor, weight: Tensor) -> dict[str, Tensor]:
    x, weight = (v.detach().double().contiguous().requires_grad_() for v in (x, weight))
    bias = torch.zeros_like(weight, requires_grad=True)
    y = F.batch_norm(x, None, None, weight, bias, True, 0.0, EPS)
    y.backward(dy.double())
    var, mean = torch.var_mean(x.detach(), [d for d in range(x.dim()) if d != 1], correction=0)
    return {
        "y": y.detach(),
        "dx": x.grad,
        "dweight": weight.grad,
        "dbias": bias.grad,
        "mean": mean,
        "var": var,
    }


def assert_accurate(got: dict[str, Tensor], expected: dict[str, Tensor], dy: Tensor, half: bool) -> None:
    """1e-6: mean in standard deviations, var relative, sums over rows relative to what they could be at most.

    In bf16 y and dx are as good as their rounding, and so is what torch's one pass adds up behind it.
    """
    wide, narrow = (2e-3, 2e-5) if half else (1e-6, 1e-6)
    std = expected["var"].sqrt()
    assert ((got["mean"] - expected["mean"]) / std).abs().max() < 1e-6
    assert ((got["var"] - expected["var"]) / expected["var"]).abs().max() < 1e-6
    for name in ("y", "dx"):
        error = torch.linalg.vector_norm(got[name].double() - expected[name])
        assert error < wide * torch.linalg.vector_norm(expected[name]), name
    largest = dy.double().square().mean().sqrt() * (dy.numel() / dy.shape[1])
    for name in ("dweight", "dbias"):
        assert (got[name] - expected[name]).abs().max() < narrow * largest, name


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_statistics_and_gradient_equal_float64(case: Case) -> None:
    x, dy, weight, bias = make(case)
    means, variances = statistics([[x]])
    for leaf in (x, weight, bias):
        leaf.requires_grad_()
    whole = Groups(len(x), len(x))
    y = Normalise.apply(x, weight, bias, means, variances, lambda: torch.tensor([True]), whole, EPS, None)
    assert y.dtype == x.dtype
    assert y.stride() == x.stride()
    y.backward(dy)
    got = {"y": y.detach(), "dx": x.grad, "dweight": weight.grad, "dbias": bias.grad}
    got |= {"mean": means[0].float().double(), "var": variances[0].float().double()}  # as they are used
    assert_accurate(got, in_float64(x, dy, weight), dy, case.dtype == torch.bfloat16)


class AsOnGpu(TorchDispatchMode):
    """The kernel for given statistics as CUDA has it: it works in the tensors for what would be saved."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not torch.ops.aten.native_batch_norm.out:
            return func(*args, **kwargs or {})
        x, weight, bias, mean, var, training, _, eps = args
        assert kwargs is not None
        assert not training
        saved_mean, saved_inverse = kwargs["save_mean"], kwargs["save_invstd"]
        saved_mean.resize_(mean.shape).copy_(mean)
        saved_inverse.resize_(var.shape).copy_((var + eps).rsqrt())
        scale, shift = (
            (v if v is not None else mean.new_tensor([d]))[:, None, None] for v, d in ((weight, 1), (bias, 0))
        )
        normed = (x - saved_mean[:, None, None]) * saved_inverse[:, None, None]
        return kwargs["out"].copy_(normed * scale + shift), saved_mean, saved_inverse


def test_the_kernel_of_a_gpu_gives_the_same() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.BatchNorm2d(3))
    norms, x = install(net, 4, share=8), 3 + 2 * torch.randn(16, 3, 5, 5)
    with norms.samples(8, collect=False):
        expected = net(x)
        with AsOnGpu():
            got = net(x)
    torch.testing.assert_close(got, expected)


def test_a_tile_holds_many_rows() -> None:
    """A few narrow rows a call would cost more than the sums."""
    x, *_ = make(Case((64, 16, 32, 32), 0))
    with torch.profiler.profile() as profile:
        statistics([[x]])
    calls = [event for event in profile.events() if event.name == "aten::batch_norm_update_stats"]
    assert len(calls) == 64 * 32 * 32 * 16 // 1024 // 128


def test_parts_have_statistics_of_their_own() -> None:
    x, *_ = make(Case((96, 16, 8, 8), 3, torch.float64))
    means, variances = statistics([part.split(16) for part in x.split(32)])
    for part, mean, var in zip(x.split(32), means, variances):
        torch.testing.assert_close(mean, part.mean((0, 2, 3)))
        torch.testing.assert_close(var, part.var((0, 2, 3), correction=0))


def _synchronised(rank: int, world_size: int, case: Case) -> dict[str, np.ndarray]:
    x, dy, weight, bias = make(case)
    x, dy = (v.chunk(world_size)[rank].clone(memory_format=torch.preserve_format) for v in (x, dy))
    for leaf in (x, weight, bias):
        leaf.requires_grad_()
    peers = torch.distributed.group.WORLD
    means, variances = over_ranks(*statistics([[x]]), peers)
    whole = Groups(len(x), len(x))
    y = Normalise.apply(x, weight, bias, means, variances, lambda: torch.tensor([True]), whole, EPS, peers)
    y.backward(dy)
    sums = {"dweight": weight.grad, "dbias": bias.grad}
    for value in sums.values():
        torch.distributed.all_reduce(value)
    own = {"y": y.detach(), "dx": x.grad, "mean": means[0].float().double()}
    own |= {"var": variances[0].float().double()}
    return {name: value.float().numpy() for name, value in {**sums, **own}.items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_synchronised_statistics_and_gradient_equal_float64(dtype: torch.dtype) -> None:
    case = Case((64, 16, 16, 16), 10, dtype)
    x, dy, weight, _ = make(case)
    results = run_ranks(_synchronised, 2, case)
    got: dict[str, Any] = {name: torch.from_numpy(value) for name, value in results[0].items()}
    for name in ("y", "dx"):
        got[name] = torch.cat([torch.from_numpy(result[name]) for result in results])
    assert_accurate(got, in_float64(x, dy, weight), dy, dtype == torch.bfloat16)


def test_a_layer_is_as_accurate_as_the_arithmetic_and_so_are_its_running_statistics() -> None:
    x, *_ = make(CASES["channels last, far from zero, bf16"])
    layer = nn.Sequential(nn.BatchNorm2d(16, momentum=1.0))
    norms = install(layer, 128, share=256)
    with norms.samples(256, collect=True), torch.no_grad():
        layer(x)
    norms.update()
    halves = x.double().split(128)
    mean = sum(half.mean((0, 2, 3)) for half in halves) / 2
    var = sum(half.var((0, 2, 3)) for half in halves) / 2
    assert ((layer[0].running_mean - mean) / var.sqrt()).abs().max() < 1e-6
    assert ((layer[0].running_var - var) / var).abs().max() < 1e-6
