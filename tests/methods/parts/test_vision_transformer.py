"""Vision transformers: sizes, positions, pooling, frozen patches, dropped paths."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vergence.methods.method import Encoder
from vergence.methods.parts import ema
from vergence.methods.parts.backbones import EncoderConfig, build_encoder
from vergence.methods.parts.vision_transformer import sincos
from vergence.methods.torchvision_shim import timm

SMALL: dict[str, Any] = {"name": "vit_tiny_patch16_224", "patch_size": 4, "depth": 2}


def build(**config: Any) -> Encoder:
    torch.manual_seed(0)
    return build_encoder(EncoderConfig(**{**SMALL, **config}), image_size=32)


def images(n: int = 2, side: int = 32) -> Tensor:
    return torch.randn(n, 3, side, side, generator=torch.Generator().manual_seed(0))


def test_image_and_patch_size_make_the_grid_and_small_views_interpolate_it() -> None:
    encoder = build()
    assert encoder.backbone.patch_embed.grid_size == (8, 8)
    assert encoder.backbone.pos_embed.shape == (1, 65, 192)
    assert len(list(encoder.backbone.blocks.children())) == 2
    assert encoder(images()).shape == (2, encoder.dim) == (2, 192)
    seen = []
    encoder.backbone.blocks[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        encoder.backbone.patch_embed.proj.weight.zero_()
        encoder.backbone.patch_embed.proj.bias.zero_()
        encoder(images(side=16))
    tokens = seen[0][0, 1:]  # positions alone
    table = encoder.backbone.pos_embed.data[:, 1:].unflatten(1, (8, 8)).permute(0, 3, 1, 2)
    expected = torch.nn.functional.interpolate(table, (4, 4), mode="bicubic", antialias=True)
    torch.testing.assert_close(tokens, expected[0].flatten(1).T)


def test_image_size_of_the_config_wins() -> None:
    encoder = build(image_size=48)
    assert encoder.backbone.patch_embed.grid_size == (12, 12)


def test_pooling_is_the_class_token_or_the_mean_of_the_others() -> None:
    cls, mean = build(pool="cls").eval(), build(pool="mean").eval()
    tokens = cls.features(images())
    assert tokens.shape == (2, 65, 192)
    torch.testing.assert_close(cls(images()), tokens[:, 0])
    pooled = mean.features(images())[:, 1:].mean(dim=1)
    torch.testing.assert_close(mean(images()), mean.backbone.fc_norm(pooled))


def test_fixed_positions_are_sines_and_do_not_learn() -> None:
    encoder = build(positions="sincos", freeze_patches=True)
    positions = encoder.backbone.pos_embed
    assert (positions[0, 0] == 0).all()
    torch.testing.assert_close(positions.data[0, 1:], sincos(8, 8, 192))
    frozen = {name for name, p in encoder.named_parameters() if not p.requires_grad}
    assert frozen == {
        f"backbone.{name}" for name in ("pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias")
    }


def test_sines_equal_their_formula() -> None:
    table = sincos(3, 5, 8)
    for row in range(3):
        for column in range(5):
            angles = [(place, 10000 ** -(k / 2)) for place in (row, column) for k in range(2)]
            expected = [
                f(angles[i + k][0] * angles[i + k][1])
                for i in (0, 2)
                for f in (math.sin, math.cos)
                for k in (0, 1)
            ]
            torch.testing.assert_close(table[row * 5 + column], torch.tensor(expected))
    with pytest.raises(ValueError, match="multiple of 4"):
        sincos(2, 2, 6)


def test_paths_are_dropped_in_training_by_the_generator_and_never_in_the_teacher() -> None:
    student = build(drop_path=0.9)
    teacher = ema.teacher_of(student)
    assert teacher.training

    def draw(network: nn.Module, seed: int) -> Tensor:
        torch.manual_seed(seed)
        return network(images(8))

    assert torch.equal(draw(student, 1), draw(student, 1))
    assert not torch.equal(draw(student, 1), draw(student, 2))
    assert torch.equal(draw(teacher, 1), draw(teacher, 2))
    assert torch.equal(draw(teacher, 1), draw(student.eval(), 1))
    assert ema.teacher_of(build()).state_dict().keys() == teacher.state_dict().keys()


def test_a_resnet_drops_paths_and_gives_its_map() -> None:
    config = EncoderConfig(name="resnet18", stem="cifar", width=0.25, drop_path=0.5, zero_init_residual=False)
    encoder = build_encoder(config).train()
    assert encoder.features(images()).shape == (2, 128, 4, 4)
    dropped = [m for m in encoder.modules() if isinstance(m, timm.layers.drop.DropPath)]
    assert max(m.drop_prob for m in dropped) == 0.5


@pytest.mark.parametrize("field", ["patch_size", "depth", "pool", "positions", "freeze_patches"])
def test_what_only_vision_transformers_have_is_refused(field: str) -> None:
    value: Any = {"pool": "cls", "positions": "sincos", "freeze_patches": True}.get(field, 4)
    with pytest.raises(
        ValueError, match=f"resnet18 is no vision transformer of timm and cannot take {field}="
    ):
        build_encoder(EncoderConfig(**{field: value}))


def test_heads_and_weights_of_moco_v3() -> None:
    backbone = build(heads=6, init="moco").backbone
    assert [block.attn.num_heads for block in backbone.blocks] == [6, 6]
    q_k_v, proj = backbone.blocks[0].attn.qkv, backbone.patch_embed.proj
    for weight, fans in ((q_k_v.weight, 192 + 192), (proj.weight, 3 * 4 * 4 + 192)):
        limit = math.sqrt(6 / fans)
        assert 0.95 * limit < weight.abs().max() <= limit
        assert weight.std().item() == pytest.approx(limit / math.sqrt(3), rel=0.05)
    assert not q_k_v.bias.any()
    assert not proj.bias.any()
    assert backbone.cls_token.abs().max() < 1e-5
    with pytest.raises(ValueError, match="no vision transformer"):
        build_encoder(EncoderConfig(name="resnet18", heads=6))
