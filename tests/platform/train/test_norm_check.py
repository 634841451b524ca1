"""Norm layers that cannot be grouped are found before a run: unknown ones, and rows that are not samples in order."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from vergence.methods.torchvision_shim import timm
from vergence.platform.errors import UserError
from vergence.platform.train.norm_check import misplaced, recorded, unknown
from vergence.platform.train.norms import install


class Own(nn.BatchNorm2d):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * 2


class Renamed(nn.BatchNorm2d):
    """A forward like its parent's."""


class Running(nn.Module):
    """Statistics of its own, and no batch norm by type."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("running_var", torch.ones(3))


@pytest.mark.parametrize(
    ("layer", "kind"),
    [
        (nn.BatchNorm3d(3), "torch.nn.modules.batchnorm.BatchNorm3d"),
        (nn.SyncBatchNorm(3), "torch.nn.modules.batchnorm.SyncBatchNorm"),
        (nn.LazyBatchNorm2d(), "torch.nn.modules.batchnorm.LazyBatchNorm2d"),
        (nn.InstanceNorm2d(3, track_running_stats=True), "torch.nn.modules.instancenorm.InstanceNorm2d"),
        (timm.layers.EvoNorm2dB0(3), "timm.layers.evo_norm.EvoNorm2dB0"),  # type: ignore[attr-defined]
        (Own(3), "Own"),
        (Running(), "Running"),
    ],
)
def test_norms_with_statistics_that_we_do_not_replace_are_named(layer: nn.Module, kind: str) -> None:
    method = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Sequential(layer))
    found = unknown(method)
    assert found is not None
    assert found.startswith("1.0 is a ")
    assert found.endswith(kind)
    with pytest.raises(UserError, match=r"1\.0 is a .*use torch\.nn\.BatchNorm1d or 2d"):
        install(method, "global", share=4)


@pytest.mark.parametrize(
    "layer",
    [
        nn.BatchNorm1d(3),
        Renamed(3),
        timm.layers.BatchNormAct2d(3),  # type: ignore[attr-defined]
        nn.InstanceNorm2d(3),
        nn.GroupNorm(1, 3),
        nn.LayerNorm(3),
    ],
)
def test_norms_that_we_replace_or_that_keep_no_statistics_are_accepted(layer: nn.Module) -> None:
    assert unknown(nn.Sequential(layer)) is None


def test_a_cumulative_average_is_named() -> None:
    found = unknown(nn.Sequential(nn.BatchNorm1d(3, momentum=None)))
    assert found == "0 has momentum=None, a cumulative average"


class Rows(nn.Module):
    """Two views in one forward; what reaches the second norm is moved by `change`."""

    def __init__(self, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.second, self.change = nn.BatchNorm2d(3), nn.BatchNorm1d(3), change

    def forward(self, images: Tensor) -> Tensor:
        x = self.first(torch.cat([images, images.flip(3) * 0.7]))
        return self.second(self.change(x.mean((2, 3))))


class Backbone(nn.Module):
    """A timm model that sees two views in one forward."""

    def __init__(self, name: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone = timm.create_model(name, num_classes=0)

    def forward(self, images: Tensor) -> Tensor:
        return self.backbone(torch.cat([images, images.flip(3)]))


def found_in(method: nn.Module, side: int = 4, precision: torch.dtype = torch.float32) -> str | None:
    generator = torch.Generator().manual_seed(0)
    images = torch.stack([torch.randn(3, side, side, generator=generator) * (1 + i) + i for i in range(4)])
    half = torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16)
    with recorded(method.eval()) as forwards, torch.no_grad(), half:
        method(images[:2])
        method(images)
    first, second = forwards
    return misplaced(first, second, n=2)


CHANGES: dict[str, Callable[[Tensor], Tensor]] = {
    "reversed": lambda x: x.flip(0),
    "rolled": lambda x: x.roll(1, 0),
    "halves of a view exchanged": lambda x: torch.cat([x_v.roll(len(x) // 4, 0) for x_v in x.chunk(2)]),
    "views interleaved": lambda x: torch.stack(x.chunk(2), 1).flatten(0, 1),
    "tokens folded in": lambda x: x[:, None].mul(torch.arange(1, 6)[:, None]).flatten(0, 1),
    "one view repeated by sample": lambda x: x[: len(x) // 2].repeat_interleave(2, 0),
    "samples mixed": lambda x: x - x.mean(0),
    "half of the rows": lambda x: x[::2],
    "a row left out": lambda x: x[1:],
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_rows_that_are_not_whole_views_of_the_samples_in_order_are_found(change: Callable) -> None:
    assert found_in(Rows(change)) == "second"


def test_rows_of_views_in_order_are_accepted() -> None:
    assert found_in(Rows(lambda x: x)) is None
    assert found_in(Rows(lambda x: torch.cat([x, x * 2]))) is None  # four views


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_levit_folds_tokens_and_a_resnet_does_not(precision: torch.dtype) -> None:
    found = found_in(Backbone("levit_128s"), 224, precision)
    assert found == "backbone.stages.0.blocks.0.attn.qkv.bn"
    assert found_in(Backbone("levit_conv_128s"), 224, precision) is None
    assert found_in(Backbone("resnet18"), 32, precision) is None
