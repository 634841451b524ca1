from typing import Any

import pytest
import torch
from torch import nn

from vergence.methods.method import Encoder
from vergence.methods.parts.backbones import EncoderConfig, ZeroInit, build_encoder
from vergence.methods.parts.edges import gradient
from vergence.methods.parts.patches import GridConfig
from vergence.methods.torchvision_shim import timm


def build(name: str = "resnet18", zero_init: ZeroInit = "all", **config: Any) -> Encoder:
    return build_encoder(EncoderConfig(name=name, **config), zero_init)


def test_default_is_timms_own_model() -> None:
    encoder = build()
    reference = timm.create_model("resnet18", num_classes=0)
    encoder.backbone.load_state_dict(reference.state_dict())
    images = torch.randn(2, 3, 64, 64)
    assert encoder.dim == 512
    assert torch.equal(encoder.eval()(images), reference.eval()(images))


def test_quarter_width_with_cifar_stem() -> None:
    encoder = build(stem="cifar", width=0.25)
    backbone = encoder.backbone
    assert (backbone.conv1.out_channels, backbone.conv1.kernel_size, backbone.conv1.stride) == (
        16,
        (3, 3),
        (1, 1),
    )
    assert backbone.bn1.num_features == 16
    assert backbone.layer1[0].downsample is None  # 16 channels in and out
    assert encoder.dim == 128
    assert sum(p.numel() for p in encoder.parameters()) == 700_176
    shapes = []
    backbone.layer1.register_forward_hook(lambda _, args, y: shapes.append((*args[0].shape, *y.shape)))
    assert encoder(torch.randn(2, 3, 32, 32)).shape == (2, 128)
    assert shapes == [(2, 16, 32, 32, 2, 16, 32, 32)]  # no pooling in front
    full = build(stem="cifar").backbone.state_dict()
    assert list(full) == list(timm.create_model("resnet18", num_classes=0).state_dict())  # same names


def test_half_width_bottleneck_keeps_the_large_image_stem() -> None:
    encoder = build("resnet50", width=0.5)
    assert (encoder.backbone.conv1.kernel_size, encoder.backbone.conv1.out_channels) == ((7, 7), 32)
    assert encoder(torch.randn(2, 3, 64, 64)).shape == (2, encoder.dim) == (2, 1024)


def test_vision_transformer_by_name() -> None:
    assert build("vit_tiny_patch16_224")(torch.randn(2, 3, 224, 224)).shape == (2, 192)


def test_channels_last_goes_through() -> None:
    encoder, formats = build(stem="cifar", width=0.25), []
    encoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    for module in encoder.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(
                lambda _, __, y: formats.append(y.is_contiguous(memory_format=torch.channels_last))
            )
    encoder(torch.randn(2, 3, 32, 32).contiguous(memory_format=torch.channels_last))
    assert len(formats) == 20
    assert all(formats)


@pytest.mark.parametrize(
    ("name", "zero_init", "asked", "expected"),
    [
        ("resnet18", "all", None, True),
        ("resnet18", "bottleneck", None, False),
        ("resnet50", "bottleneck", None, True),
        ("resnet50", "none", None, False),
        ("resnet18", "none", True, True),
        ("resnet18", "all", False, False),
    ],
)
def test_residual_branches_start_at_zero_as_the_method_or_the_recipe_says(
    name: str, zero_init: ZeroInit, asked: bool | None, expected: bool
) -> None:
    block = build(name, zero_init, zero_init_residual=asked, width=0.25).backbone.layer2[0]
    last = block.bn3 if name == "resnet50" else block.bn2
    assert (last.weight == 0).all() == expected
    assert (block.bn1.weight == 1).all()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"name": "resnet19"}, "timm has no model 'resnet19'; did you mean resnet18"),
        ({"name": "vit_tiny_patch16_224", "width": 0.5}, "is not a ResNet of timm and cannot take width=0.5"),
        ({"name": "vit_tiny_patch16_224", "stem": "cifar"}, "cannot take stem='cifar'"),
        ({"name": "vit_tiny_patch16_224", "zero_init_residual": True}, "cannot take zero_init_residual=True"),
        ({"name": "resnet18d", "stem": "cifar"}, "resnet18d has a stem of several convolutions"),
        (
            {"name": "resnet18", "sk_ratio": 0.0625},
            "resnet18 has no selective kernels and cannot take sk_ratio",
        ),
        ({"name": "vgg11", "sk_ratio": 0.0625}, "vgg11 is not a ResNet of timm and cannot take sk_ratio"),
        ({"name": "waves", "edges": True}, "waves takes no images and cannot take edges=True"),
        ({"edges": True, "split": "lab"}, "encoder.edges: .* leave out encoder.split"),
    ],
)
def test_what_cannot_be_built_is_said(config: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_encoder(EncoderConfig(**config))


@pytest.mark.parametrize("zero_init", ["all", "none"])
def test_selective_kernels_by_name_with_residual_branches_that_start_at_zero(zero_init: ZeroInit) -> None:
    encoder = build("skresnet18", zero_init, width=0.25)
    assert encoder(torch.randn(2, 3, 32, 32)).shape == (2, 128)
    block = encoder.backbone.layer1[0]
    assert type(block).__name__ == "SelectiveKernelBasic"
    assert bool(block.conv2.bn.weight.any()) == (zero_init == "none")


@pytest.mark.parametrize(
    ("ratio", "width", "expected"),
    [
        (None, 1.0, [16, 16, 32, 64]),
        (0.0625, 1.0, [32] * 4),
        (0.25, 1.0, [32, 32, 64, 128]),
        (0.5, 0.25, [32, 32, 32, 64]),
    ],
)
def test_selective_kernels_are_chosen_by_as_many_channels_as_the_ratio_says(
    ratio: float | None, width: float, expected: list[int]
) -> None:
    backbone = build("skresnet18", sk_ratio=ratio, width=width).backbone
    stages = (backbone.layer1, backbone.layer2, backbone.layer3, backbone.layer4)
    assert [stage[0].conv1.attn.fc_reduce.out_channels for stage in stages] == expected
    chosen = [(stage[0].conv1.out_channels, stage[0].conv1.attn.fc_select.out_channels) for stage in stages]
    assert [selected for _, selected in chosen] == [2 * channels for channels, _ in chosen]
    if ratio:
        weight = backbone.layer4[1].conv1.attn.fc_select.weight  # He's rule for what goes out
        assert weight.std().item() == pytest.approx((2 / weight.shape[0]) ** 0.5, rel=0.1)
    assert build("skresnet18", sk_ratio=ratio, width=0.25)(torch.randn(2, 3, 32, 32)).shape == (2, 128)


@pytest.mark.parametrize(("name", "settings"), [("resnet18", {"width": 0.25}), ("mobilenetv3_small_050", {})])
def test_edges_are_seen_in_the_place_of_colours(name: str, settings: dict[str, Any]) -> None:
    encoder = build(name, edges=True, **settings).eval()
    images = torch.randn(2, 3, 32, 32)
    expected = encoder.backbone(gradient(images))
    assert torch.equal(encoder(images), expected)
    assert torch.equal(encoder.pool(encoder.features(images)), expected)
    gray = images.mean(dim=1, keepdim=True).expand_as(images)
    torch.testing.assert_close(encoder(gray + 0.0), expected)
    first = next(module for module in encoder.modules() if isinstance(module, nn.Conv2d))
    assert first.in_channels == 2


def test_resnet_161_is_three_stages_of_which_the_last_is_4096_wide() -> None:
    with torch.device("meta"):
        encoder = build("resnet161", norm="layer")
    backbone: Any = encoder.backbone
    assert encoder.dim == 4096
    assert sum(p.numel() for p in encoder.parameters()) == 303_651_904  # published: 305 million
    convolutions = [
        name
        for name, module in backbone.named_modules()
        if isinstance(module, nn.Conv2d) and "down" not in name
    ]
    assert len(convolutions) + 1 == 161
    last = backbone.layer3[45]
    assert [conv.out_channels for conv in (last.conv1, last.conv2, last.conv3)] == [512, 512, 4096]
    stages = (backbone.layer1, backbone.layer2, backbone.layer3, backbone.layer4)
    assert [len(stage) for stage in stages] == [3, 4, 46, 0]


def test_resnet_161_on_patches_and_narrow() -> None:
    encoder = build("resnet161", width=1 / 32, norm="layer", grid=GridConfig(patch=80, stride=36)).eval()
    grids: list[torch.Size] = []
    encoder.backbone.layer3.register_forward_hook(lambda _, __, y: grids.append(y.shape))
    assert encoder.features(torch.randn(1, 3, 116, 116)).shape == (1, encoder.dim, 2, 2) == (1, 128, 2, 2)
    assert grids == [(4, 128, 5, 5)]
    block = encoder.backbone.layer3[1]
    assert (block.conv2.out_channels, block.conv3.out_channels) == (16, 128)
