"""Norm groups against statistics written out by hand, and against torch's own batch norm."""

import copy
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from ranks import run_ranks
from torch import nn

from vergence.methods.torchvision_shim import timm
from vergence.platform.errors import UserError
from vergence.platform.train import alike
from vergence.platform.train.norms import Group, GroupedBatchNorm, NormConfig, install, validate


def network() -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.BatchNorm2d(4, affine=False)
    )
    for layer in (net[1], net[3]):
        layer.running_mean.uniform_()
        layer.running_var.uniform_()
    return net


def rows(num_views: int, n: int) -> torch.Tensor:
    """Skewed: every sample has a mean and a scale of its own. (V * n, 3, 5, 5) float64."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(num_views, n, 3, 5, 5, generator=generator, dtype=torch.float64)
    position = torch.arange(n).view(1, n, 1, 1, 1)
    return (x * (1 + position) + position).flatten(0, 1)


@pytest.mark.parametrize("num_views", [1, 2])
@pytest.mark.parametrize("group", [2, 3, 6])
def test_groups_are_runs_of_samples_over_all_views(num_views: int, group: int) -> None:
    bn = nn.Sequential(nn.BatchNorm2d(3)).double()
    nn.init.uniform_(bn.get_parameter("0.weight"))
    nn.init.uniform_(bn.get_parameter("0.bias"))
    norms = install(bn, group, share=6)
    x = rows(num_views, 6)
    with norms.samples(6, collect=True):
        y = bn(x).detach().unflatten(0, (num_views, 6))
    norms.update()

    x_v, means, variances = x.unflatten(0, (num_views, 6)).numpy(), [], []
    weight, bias = (p.detach().numpy().reshape(1, 1, 3, 1, 1) for p in (bn[0].weight, bn[0].bias))
    for j in range(6 // group):
        part = x_v[:, j * group : (j + 1) * group]
        mean, var = part.mean((0, 1, 3, 4), keepdims=True), part.var((0, 1, 3, 4), keepdims=True)
        expected = (part - mean) / np.sqrt(var + 1e-5) * weight + bias
        np.testing.assert_allclose(y[:, j * group : (j + 1) * group].numpy(), expected, atol=1e-12)
        means.append(mean.ravel())
        variances.append(part.var((0, 1, 3, 4), ddof=1))
    np.testing.assert_allclose(bn[0].running_mean.numpy(), 0.1 * np.mean(means, 0), rtol=1e-12)
    np.testing.assert_allclose(bn[0].running_var.numpy(), 0.9 + 0.1 * np.mean(variances, 0), rtol=1e-12)
    assert bn[0].num_batches_tracked == 1


def test_installing_changes_neither_state_dict_nor_plain_results() -> None:
    plain = network()
    grouped = copy.deepcopy(plain)
    norms = install(grouped, "global", share=6)
    assert list(plain.state_dict()) == list(grouped.state_dict())
    assert [type(grouped[i]) for i in (1, 3)] == [GroupedBatchNorm, GroupedBatchNorm]
    x = rows(1, 6).float()
    with norms.samples(6, collect=True):
        torch.testing.assert_close(grouped(x), plain(x))
    norms.update()
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(grouped.state_dict()[name], value)
    torch.testing.assert_close(grouped.eval()(x), plain.eval()(x))


def test_running_statistics_change_only_in_update() -> None:
    net = network()
    norms = install(net, 2, share=4)
    before = copy.deepcopy(net.state_dict())
    x = rows(1, 4).float()
    with norms.samples(4, collect=False):
        net(x)
    norms.update()
    with norms.samples(4, collect=True):
        net(x)
        net(x * float("nan"))
    norms.discard()
    norms.update()
    assert all(torch.equal(net.state_dict()[name], value) for name, value in before.items())
    with norms.samples(4, collect=True):
        net(x)
    norms.update()
    assert net[1].running_mean.isfinite().all()
    assert not torch.equal(net.get_buffer("1.running_mean"), before["1.running_mean"])


def test_a_norm_that_is_used_in_two_places_stays_one() -> None:
    shared = nn.BatchNorm2d(3)
    net = nn.ModuleList([nn.Sequential(shared), nn.Sequential(nn.ReLU(), shared)])
    norms = install(net, 4, share=4)
    assert net[0][0] is net[1][1]
    assert norms.layers == [net[0][0]]
    x = rows(1, 4).float()
    with norms.samples(4, collect=True):
        net[0](x)
        net[1](x)
    norms.update()
    expected = 0.1 * torch.stack([x.mean((0, 2, 3)), x.relu().mean((0, 2, 3))]).mean(0)
    torch.testing.assert_close(net[0][0].running_mean, expected)
    assert net[0][0].num_batches_tracked == 1


def test_training_outside_samples_is_an_error() -> None:
    net = network()
    install(net, 2, share=4)
    with pytest.raises(AssertionError, match=r"norms\.samples"):
        net(rows(1, 4).float())


@pytest.mark.parametrize(("group", "num_views"), [(4, 2), (2, 1), (2, 2)])
def test_channels_last_and_bf16_pass_through(group: int, num_views: int) -> None:
    net = network()
    norms = install(net, group, share=4)
    x = rows(num_views, 4).float().to(memory_format=torch.channels_last)
    with norms.samples(4, collect=True), torch.autocast("cpu", torch.bfloat16):
        y = net(x)
    assert y.dtype == torch.bfloat16
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert net[1].scratch[0].dtype == torch.float32


def test_timm_norm_with_activation_keeps_its_activation() -> None:
    plain = nn.Sequential(timm.layers.BatchNormAct2d(3, inplace=False))  # type: ignore[attr-defined]
    grouped = copy.deepcopy(plain)
    norms = install(grouped, 4, share=4)
    x = rows(1, 4).float()
    with norms.samples(4, collect=True):
        y = grouped(x)
    torch.testing.assert_close(y, plain(x))
    assert y.min() == 0


def projector() -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(6, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4), nn.BatchNorm1d(4)
    )
    return net.double()


def images(alike: slice) -> torch.Tensor:
    """Eight rows; those of `alike` are the same to 1e-7, as the same image gives through other blocks of a product."""
    x = torch.randn(8, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x[alike] = x[alike][:1] + 1e-7 * x[alike]
    return x


def gradients(net: nn.Sequential, x: torch.Tensor, norms: Any = None) -> dict[str, torch.Tensor]:
    """Of a loss that knows directions only, like that of most methods; with `norms`, inside its samples."""
    net.zero_grad()
    x = x.clone().requires_grad_()
    with norms.samples(len(x), collect=True) if norms else nullcontext():
        z = F.normalize(net(x), dim=1)
    towards = torch.randn(8, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)[: len(x)]
    (z * towards).sum().backward()
    return {"x": x.grad} | {name: p.grad for name, p in net.named_parameters()}


@pytest.mark.parametrize("updates", [0, 3])
def test_a_group_of_one_image_gives_no_gradient_and_the_others_give_theirs(updates: int) -> None:
    net = projector()
    expected = gradients(copy.deepcopy(net), images(slice(0, 0))[:4])
    exploded = gradients(copy.deepcopy(net), images(slice(4, 8))[4:])
    norms = install(net, 4, share=8)
    for _ in range(updates):
        gradients(net, images(slice(0, 0)), norms)
        assert norms.alike_samples() == []
        norms.update()
    got = gradients(net, images(slice(4, 8)), norms)
    assert norms.alike_samples() == [4, 5, 6, 7]
    assert not got["x"][4:].any()
    torch.testing.assert_close(got["x"][:4], expected["x"])
    for name in ("0.weight", "1.weight", "1.bias", "4.weight", "4.bias"):
        torch.testing.assert_close(got[name], expected[name])
    assert exploded["1.bias"].norm() > 1000 * expected["1.bias"].norm()
    norms.update()
    assert norms.alike_samples() == []


def test_a_group_of_one_image_gives_none_behind_a_norm_that_has_blown_its_rounding_up() -> None:
    net, x = projector(), 1e6 * images(slice(4, 8))  # the differences are large beside eps
    expected = gradients(copy.deepcopy(net), x[:4])
    norms = install(net, 4, share=8)
    with norms.samples(8, collect=True):
        assert net[:3](x)[4:].std() > 0.1
    norms.discard()
    got = gradients(net, x, norms)
    assert norms.alike_samples() == [4, 5, 6, 7]
    assert not got["x"][4:].any()
    torch.testing.assert_close(got["4.bias"], expected["4.bias"])


def test_rows_that_vary_as_little_as_usual_are_not_alike() -> None:
    """A layer behind a collapsed one, or behind weights that start at zero, goes on learning."""
    for spread in (1e-4, 0.0):
        net = projector()
        norms = install(net, 4, share=8)
        x = images(slice(0, 8))[:1] * spread + images(slice(0, 0)) * spread * 1e-4
        x = x + (1.0 if spread else 0.0)
        for _ in range(2):
            gradients(net, x, norms)
            norms.update()
        gradients(net, x, norms)
        assert norms.alike_samples() == [], spread


def test_other_groups_get_the_same_bits_as_without_the_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    results = []
    for share_of_rows in (alike.ALIKE, -1.0):
        monkeypatch.setattr(alike, "ALIKE", share_of_rows)
        net = network()
        norms = install(net, 2, share=6)
        for step in range(3):
            x = rows(2, 6).float().to(memory_format=torch.channels_last) + step
            with norms.samples(6, collect=True):
                net(x).square().mul(torch.arange(x.numel() // 3 * 4).view(12, 4, 5, 5)).sum().backward()
            norms.update()
        results.append({**{n: p.grad for n, p in net.named_parameters()}, **dict(net.named_buffers())})
    assert all(torch.equal(results[1][name], value) for name, value in results[0].items())


def _synchronised(rank: int, world_size: int, group: Group) -> dict[str, np.ndarray]:
    net = network().double()
    share = 12 // world_size
    norms = install(net, group, share=share)
    x = rows(2, 12).unflatten(0, (2, 12))[:, rank * share : (rank + 1) * share].flatten(0, 1).requires_grad_()
    with norms.samples(share, collect=True):
        y = net(x)
    (y * y.sin()).sum().backward()
    norms.update()
    grads = {name: p.grad.clone() for name, p in net.named_parameters()}
    for grad in grads.values():
        if world_size > 1:
            torch.distributed.all_reduce(grad)
    running = dict(net.named_buffers())
    own = {"y": y.detach().unflatten(0, (2, share)), "dx": x.grad.unflatten(0, (2, share))}
    return {name: value.numpy() for name, value in {**grads, **running, **own}.items()}


@pytest.mark.parametrize(("world_size", "group"), [(2, "global"), (3, "global"), (4, 6)])
def test_groups_larger_than_a_share_equal_one_process(world_size: int, group: Group) -> None:
    expected = _synchronised(0, 1, group)
    results = run_ranks(_synchronised, world_size, group)
    for name, value in expected.items():
        if name in ("y", "dx"):
            got = np.concatenate([result[name] for result in results], axis=1)
            np.testing.assert_allclose(got, value, atol=1e-12 * np.abs(value).max())
        else:
            for result in results:
                np.testing.assert_allclose(result[name], value, rtol=1e-9, atol=1e-12, err_msg=name)


@pytest.mark.parametrize(
    ("config", "micro", "message"),
    [
        ({"group": 24}, 64, "norm.group 24 does not divide the micro-batch of 64 samples; nearest: 16, 32"),
        ({"group": 64}, 32, "use batch.micro=64"),
        ({"group": "global"}, 32, "norm.group global is larger than the micro-batch of 32"),
        ({"group": 96}, 64, "nearest: 64, 128"),
        (
            {"group": 16, "span": 24},
            64,
            "norm.span 24 must be a multiple of norm.group 16 .* nearest: 16, 32",
        ),
        ({"group": "global", "span": 64}, 64, "no room for shuffling"),
    ],
)
def test_groups_that_cannot_be_exact_are_refused(config: dict, micro: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        validate(NormConfig(**config), share=64, micro=micro, global_batch=256)


def test_default_group_is_global_and_32_for_methods_that_shuffle() -> None:
    assert [NormConfig().for_method(shuffles).group for shuffles in (False, True)] == ["global", 32]
    assert NormConfig(group=8).for_method(True).group == 8


@pytest.mark.parametrize(
    "config", [{"group": 16, "span": 32}, {"group": 64}, {"group": 128}, {"group": "global"}]
)
def test_groups_that_fit_are_accepted(config: dict) -> None:
    validate(NormConfig(**config), share=64, micro=64, global_batch=256)
