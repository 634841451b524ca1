"""Initial weights of an encoder: whose they are, how they are checked, and that they are exactly those."""

import time
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save_file
from tiny_encoder import CONFIG, make_card, make_encoder

from vergence.methods.method import Encoder
from vergence.methods.parts.backbones import EncoderConfig, build_encoder
from vergence.methods.torchvision_shim import timm
from vergence.platform.encoders.export import WEIGHTS, export_encoder
from vergence.platform.encoders.pretrained import Initial, fill
from vergence.platform.errors import UserError


def timms(path: Path, name: str, **arguments: Any) -> dict[str, torch.Tensor]:
    """Weights of a model of timm, its classifier too, in a file."""
    torch.manual_seed(7)
    state: dict[str, torch.Tensor] = timm.create_model(name, **arguments).state_dict()
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(state, path)
    return state


def backbone_of(encoder: Encoder) -> dict[str, torch.Tensor]:
    return encoder.get_submodule("backbone").state_dict()


def filled(size: int | None = None, **config: Any) -> tuple[Encoder, Initial]:
    asked = EncoderConfig(**config)  # a resnet18, if nothing else is said
    encoder = build_encoder(asked, image_size=size)
    return encoder, fill(encoder, asked)


def test_a_file_of_timms_is_taken_bit_by_bit_but_its_classifier(tmp_path: Path) -> None:
    state = timms(tmp_path / "w.safetensors", "resnet18")
    encoder, initial = filled(pretrained=f"{tmp_path}/w.safetensors")
    built = backbone_of(encoder)
    assert state.keys() - built.keys() == {"fc.weight", "fc.bias"}
    assert all(torch.equal(value, state[key]) for key, value in built.items())
    assert all(torch.equal(value, initial.state[key]) for key, value in encoder.state_dict().items())
    initial.keep(tmp_path / "kept.safetensors")
    (_, again), (_, other) = (
        filled(pretrained=f"{tmp_path}/w.safetensors"),
        filled(pretrained=f"{tmp_path}/w.safetensors", zero_init_residual=True),
    )
    assert initial.digest == again.digest == other.digest  # nothing is left of what was drawn
    del state["bn1.num_batches_tracked"]  # a counter that older files lack
    state["bn1.weight"] = state["bn1.weight"] + 1
    save_file(state, tmp_path / "w.safetensors")
    assert filled(pretrained=f"{tmp_path}/w.safetensors")[1].digest != initial.digest


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224"])
def test_positions_for_another_size_are_those_of_timms_own_loader(tmp_path: Path, name: str) -> None:
    file = tmp_path / "w.safetensors"
    timms(file, name)
    encoder, initial = filled(96, name=name, pretrained=str(file))
    theirs = timm.create_model(
        name, pretrained=True, pretrained_cfg_overlay={"file": str(file)}, num_classes=0, img_size=96
    ).state_dict()
    built = backbone_of(encoder)
    assert built.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[key]) for key, value in built.items())
    tokens = 2 if "distilled" in name else 1
    assert initial.resampled == (f"pos_embed 1x{196 + tokens}x192 -> 1x{36 + tokens}x192",)


def test_fixed_positions_are_computed_and_learned_ones_are_no_fixed_ones(tmp_path: Path) -> None:
    vit: dict[str, Any] = {"name": "vit_tiny_patch16_224", "depth": 2, "positions": "sincos"}
    own = build_encoder(EncoderConfig(**vit), image_size=64)
    save_file(backbone_of(own), tmp_path / "own.safetensors")
    encoder, initial = filled(96, pretrained=f"{tmp_path}/own.safetensors", **vit)
    expected = build_encoder(EncoderConfig(**vit), image_size=96).state_dict()["backbone.pos_embed"]
    assert torch.equal(encoder.state_dict()["backbone.pos_embed"], expected)
    assert torch.equal(encoder.state_dict()["backbone.cls_token"], own.state_dict()["backbone.cls_token"])
    assert len(initial.resampled) == 1
    timms(tmp_path / "learned.safetensors", "vit_tiny_patch16_224", depth=2)
    with pytest.raises(
        UserError, match=r"positions are learned, got encoder\.positions=sincos; leave that out"
    ):
        filled(96, pretrained=f"{tmp_path}/learned.safetensors", **vit)


def test_the_encoder_of_a_run_is_taken_by_its_name_and_its_card_tells_the_cure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VERGENCE_HOME", str(tmp_path))
    trained = make_encoder()
    export_encoder(trained, make_card(), tmp_path / "first" / "exports")
    config = CONFIG.model_copy(update={"pretrained": "first"})
    encoder = build_encoder(config)
    initial = fill(encoder, config)
    assert initial.where == "the encoder of first"
    assert all(torch.equal(value, trained.state_dict()[key]) for key, value in encoder.state_dict().items())
    weights = tmp_path / "first" / "exports" / WEIGHTS
    weights.rename(tmp_path / WEIGHTS)  # the program alone holds them too
    assert fill(build_encoder(config), config).digest == initial.digest
    (tmp_path / WEIGHTS).rename(weights)
    with pytest.raises(
        UserError,
        match=r"not weights of resnet18 as it is built here: conv1.weight is 16x3x3x3, needs 64x3x7x7, .* and \d+ more; "
        "set encoder.stem=cifar encoder.width=0.25, as their card says",
    ):
        filled(pretrained="first")
    with pytest.raises(UserError, match=r"encoder.pretrained=frist: frist: no such run .*did you mean first"):
        filled(pretrained="frist")


def test_weights_that_fit_are_refused_where_the_card_tells_that_they_mean_something_else(
    tmp_path: Path,
) -> None:
    vit: dict[str, Any] = {"name": "vit_tiny_patch16_224", "depth": 1}
    made = EncoderConfig(heads=6, **vit)
    card = make_card(backbone=made.model_dump()).model_dump_json(exclude={"recipe"}, by_alias=True)
    state, file = backbone_of(build_encoder(made, image_size=32)), f"{tmp_path}/w.safetensors"
    save_file(state, file, metadata={"card": card})
    with pytest.raises(
        UserError, match=r"weights of another vit_tiny.*; set encoder\.heads=6, as their card says"
    ):
        filled(32, pretrained=file, **vit)
    encoder, _ = filled(32, pretrained=file, heads=6, freeze_patches=True, drop_path=0.1, **vit)
    assert all(torch.equal(value, state[key]) for key, value in backbone_of(encoder).items())


def test_weights_of_another_network_are_refused_by_name(tmp_path: Path) -> None:
    file = tmp_path / "w.safetensors"
    timms(file, "resnet18")
    other: tuple[tuple[dict[str, Any], str], ...] = (
        ({"stem": "cifar"}, "conv1.weight is 64x3x7x7, needs 64x3x3x3; set encoder.name, stem"),
        ({"name": "resnet34"}, "none for layer1.2.conv1.weight, "),
        ({"name": "resnet50"}, "layer1.0.conv1.weight is 64x64x3x3, needs 64x64x1x1, "),
        ({"name": "vit_tiny_patch16_224", "depth": 2}, "none for cls_token, none for pos_embed, "),
        ({"norm": "none"}, "no place for bn1."),
    )
    for config, message in other:
        encoder = build_encoder(EncoderConfig(**config))
        before = {key: value.clone() for key, value in encoder.state_dict().items()}
        with pytest.raises(UserError) as caught:
            fill(encoder, EncoderConfig(pretrained=str(file), **config))
        assert message in str(caught.value)
        assert len(str(caught.value).splitlines()) == 1
        assert all(torch.equal(value, before[key]) for key, value in encoder.state_dict().items())


def test_what_is_no_safetensors_file_is_refused_in_a_line(tmp_path: Path) -> None:
    timms(tmp_path / "w.safetensors", "test_vit")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "w.safetensors").read_bytes()[:2000])
    for name, message in (
        ("cut.safetensors", "is no whole safetensors file"),
        ("none.safetensors", "there is no such file"),
        ("w.pth", "give the weights as FILE.safetensors"),
    ):
        with pytest.raises(UserError, match=message):
            filled(pretrained=f"{tmp_path}/{name}")


def test_timms_own_weights_come_from_its_hub_or_are_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    began = time.monotonic()
    with pytest.raises(
        UserError, match=r"=true: timm/resnet18\S* cannot be downloaded here, .*FILE.safetensors"
    ):
        filled(pretrained=True)
    assert time.monotonic() - began < 8
    with pytest.raises(UserError, match="timm has no weights for vit_giant_patch14_224; leave it out"):
        filled(name="vit_giant_patch14_224", pretrained=True, depth=1)
    there = tmp_path / "models--timm--resnet18.a1_in1k"  # as a download leaves it
    state = timms(there / "snapshots" / ("a" * 40) / "model.safetensors", "resnet18")
    (there / "refs").mkdir()
    (there / "refs" / "main").write_text("a" * 40)
    encoder, initial = filled(pretrained=True)
    assert torch.equal(encoder.state_dict()["backbone.conv1.weight"], state["conv1.weight"])
    assert initial.where == "timm's timm/resnet18.a1_in1k"
