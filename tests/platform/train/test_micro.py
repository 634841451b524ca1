"""Micro-batches of a share: made one at a time, by one copy to the device, and nothing that waits for it."""

from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from vergence.methods.catalog import METHODS
from vergence.methods.method import DataFacts
from vergence.methods.parts.backbones import EncoderConfig, build_encoder
from vergence.platform.augment.crop import cut
from vergence.platform.augment.presets import ViewSpec
from vergence.platform.augment.views import Views
from vergence.platform.data.share import Share
from vergence.platform.train.exact import accumulate
from vergence.platform.train.micro import Micros
from vergence.platform.train.norms import install

N, SIZE = 12, 4
VIEWS = (ViewSpec(count=2, size=32, recipe="byol"), ViewSpec(count=4, size=16, recipe="simclr"))
SIDES = {"small": [32] * N, "large": [80] * N, "mixed": [32, 20, 40, 80] * 3}


def share_of(sides: list[int]) -> Share:
    rng, ids = np.random.default_rng(0), np.arange(N) + 2**40
    pictures = [rng.integers(0, 256, (side, side, 3), dtype=np.uint8) for side in sides]
    fields: dict[str, np.ndarray] = {
        "label": np.arange(N),
        "audio": rng.normal(size=(N, 7)).astype(np.float32),
    }
    return Share(ids, np.arange(N), np.zeros(N, bool), cut(pictures, ids, 3, VIEWS, 0), fields)


def micros_of(share: Share, size: int, device: str = "cpu") -> Micros:
    views = Views(VIEWS, seed=0, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.25), device=device)
    return Micros(
        share,
        size,
        views=views,
        epoch=3,
        progress=0.25,
        shuffle=lambda start: torch.arange(size).flip(0) + 100 * start,
        device=torch.device(device),
    )


@pytest.mark.parametrize("sides", SIDES)
def test_micro_batches_are_the_share_in_pieces(sides: str) -> None:
    share = share_of(SIDES[sides])
    (whole,), parts = micros_of(share, N), list(micros_of(share, SIZE))
    assert [view.shape[-1] for view in whole.views] == [32, 32, 16, 16, 16, 16]
    for name in ("views", "geometry"):
        for view, pieces in zip(getattr(whole, name), zip(*(getattr(part, name) for part in parts))):
            assert torch.equal(view, torch.cat(pieces))
    assert torch.cat([part.ids for part in parts]).tolist() == whole.ids.tolist() == share.ids.tolist()
    for name in ("label", "audio"):
        assert torch.equal(torch.cat([part.fields[name] for part in parts]), whole.fields[name])
        assert (whole.fields[name].numpy() == share.fields[name]).all()
    assert [each.tolist()[0] for part in parts if (each := part.shuffle) is not None] == [3, 403, 803]


def test_a_share_without_pictures_has_no_views() -> None:
    batch = micros_of(share_of(SIDES["small"])._replace(pictures=None), SIZE)[1]
    assert (batch.views, batch.geometry, batch.ids.tolist()) == ([], [], [2**40 + i for i in range(4, 8)])
    assert batch.fields["label"].tolist() == [4, 5, 6, 7]


class Counted(TorchDispatchMode):
    """Counts copies from this host to the device (`meta`, which has no values to wait for), and what else it does."""

    def __init__(self) -> None:
        super().__init__()
        self.copies: list[dict[str, Any]] = []
        self.device_ops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, devices = kwargs or {}, set[str]()
        result = func(*args, **kwargs)
        for tensor in _tensors((args, kwargs)):
            devices.add(tensor.device.type)
        to = {tensor.device.type for tensor in _tensors(result)}
        if "cpu" in devices and "meta" in to | devices:
            self.copies.append(kwargs)
        elif "meta" in to:
            self.device_ops += 1
        return result


def _tensors(tree: Any) -> list[torch.Tensor]:
    if isinstance(tree, torch.Tensor):
        return [tree]
    parts = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list | tuple) else ()
    return [tensor for part in parts for tensor in _tensors(part)]


def test_a_micro_batch_is_one_copy_that_nothing_waits_for() -> None:
    """A value asked of the device raises there; grids, masks and factors are made there or came with the pixels."""
    micros = micros_of(share_of(SIDES["mixed"]), SIZE, device="meta")
    with Counted() as counted:
        batches = [micros[0], micros[1], micros[1]]
    assert [copy["non_blocking"] for copy in counted.copies] == [True] * 3
    assert counted.device_ops > 300
    assert {view.device.type for batch in batches for view in batch.views} == {"meta"}
    for batch in batches:
        rest = [batch.ids, *batch.fields.values(), *batch.geometry, batch.shuffle]
        assert {tensor.device.type for tensor in rest if tensor is not None} == {"meta"}
        assert [tuple(view.shape) for view in batch.views] == [(4, 3, s, s) for s in (32, 32, 16, 16, 16, 16)]


def test_a_micro_batch_that_was_begun_leaves_nothing_to_copy_and_is_the_same() -> None:
    micros = micros_of(share_of(SIDES["mixed"]), SIZE, device="meta")
    with Counted() as begun:
        micros.begin()
    with Counted() as asked:
        micros[0]
    with Counted() as again:
        micros[0]
    assert [len(each.copies) for each in (begun, asked, again)] == [1, 0, 1]
    here = micros_of(share_of(SIDES["mixed"]), SIZE)
    expected = [batch.views for batch in here]
    here.begin()
    for views, batch in zip(expected, here):
        assert all(torch.equal(a, b) for a, b in zip(views, batch.views))


class CountedStep(Counted):
    """With the one operation of batch norm that has no form without values."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.batch_norm_update_stats.default:
            return args[0].new_empty(args[0].shape[1]), args[0].new_empty(args[0].shape[1])
        return super().__torch_dispatch__(func, types, args, kwargs)


def test_forward_criterion_and_backward_wait_for_no_value_either() -> None:
    """Two passes of SimCLR with batch norm in groups: a copy each time a micro-batch is made, and no other."""
    config, simclr = METHODS["simclr"]
    encoder = build_encoder(EncoderConfig(name="resnet18", stem="cifar", width=0.0625))
    method = simclr.build(config(hidden_dim=16, embed_dim=8), encoder, DataFacts(N, N, 1)).to("meta")
    with CountedStep() as counted:
        result = accumulate(
            method,
            micros_of(share_of(SIDES["mixed"]), SIZE, device="meta"),
            seeds=[0, 1, 2],
            regime="two-pass",
            norms=install(method, 4, share=N),
            autocast=nullcontext,
            backward=lambda scalar, last: scalar.backward(),
            proceed=lambda loss: True,
        )
    assert result is not None
    assert [copy["non_blocking"] for copy in counted.copies] == [True] * 6
    assert counted.device_ops > 10_000
    assert all(parameter.grad is not None for parameter in method.encoder.parameters())
