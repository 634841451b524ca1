"""What an encoder is exported as: each form read by its own reader, against the program."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from tiny_encoder import MEAN, STD, make_card, make_encoder

from vergence.methods.parts.backbones import EncoderConfig, build_encoder
from vergence.methods.parts.patches import GridConfig
from vergence.methods.torchvision_shim import timm
from vergence.platform.encoders import formats
from vergence.platform.encoders.encoder import Images, LoadedEncoder, Rows
from vergence.platform.encoders.export import export_encoder
from vergence.platform.encoders.load import load_encoder
from vergence.platform.encoders.rebuild import timm_backbone
from vergence.platform.errors import UserError, VergenceError

BATCHES = 1, 7, 64


def exported(folder: Path, config: EncoderConfig, size: int) -> LoadedEncoder:
    torch.manual_seed(0)
    encoder = build_encoder(config, image_size=size)
    card = make_card(name=config.name, backbone=config.model_dump(), dim=encoder.dim, size=size)
    return load_encoder(str(export_encoder(encoder, card, folder / config.name)))


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> LoadedEncoder:
    """A ResNet that timm alone cannot build."""
    folder = tmp_path_factory.mktemp("ours") / "exports"
    return load_encoder(str(export_encoder(make_encoder(), make_card(), folder)))


@pytest.fixture(scope="module")
def resnet(tmp_path_factory: pytest.TempPathFactory) -> LoadedEncoder:
    return exported(tmp_path_factory.mktemp("resnet"), EncoderConfig(name="resnet10t"), 32)


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> LoadedEncoder:
    """Of another image size, patch, depth and pooling than its name says."""
    config = EncoderConfig(
        name="vit_tiny_patch16_224", patch_size=8, depth=2, pool="mean", positions="sincos", drop_path=0.1
    )
    return exported(tmp_path_factory.mktemp("vit"), config, 32)


def images(n: int, size: int) -> Images:
    return np.random.default_rng(n).integers(0, 256, (n, size, size, 3), dtype=np.uint8)


def timm_rows(model: Any, pixels: Images) -> Rows:
    x = torch.from_numpy((pixels / 255 - MEAN) / STD).permute(0, 3, 1, 2).float()
    with torch.no_grad():
        rows: Rows = model.eval()(x).numpy()
    return rows


@pytest.mark.parametrize("which", ["ours", "vit"])
def test_onnx_gives_the_vectors_of_the_program(
    which: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    import onnxruntime

    encoder: LoadedEncoder = request.getfixturevalue(which)
    formats.write_onnx(encoder, tmp_path / "encoder.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["encoder.onnx"]  # the weights are in it
    session = onnxruntime.InferenceSession(tmp_path / "encoder.onnx")
    [taken], [given] = session.get_inputs(), session.get_outputs()
    assert (taken.name, taken.type, taken.shape[1:]) == ("image", "tensor(uint8)", [encoder.size] * 2 + [3])
    assert (given.name, given.shape[1:]) == ("embedding", [encoder.dim])
    for n in BATCHES:
        pixels = images(n, encoder.size)
        np.testing.assert_allclose(session.run(None, {"image": pixels})[0], encoder(pixels), atol=1e-4)
    card = json.loads(session.get_modelmeta().custom_metadata_map["card"])
    assert (card["name"], card["dim"]) == (
        encoder.name.split("/")[-1] if which == "vit" else "tiny",
        encoder.dim,
    )


def test_onnx_that_differs_is_refused_and_the_old_file_stays(
    ours: LoadedEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnxruntime

    class Other(onnxruntime.InferenceSession):  # type: ignore[misc]  # ONNX Runtime has no types
        def run(self, *arguments: Any) -> Any:
            [rows] = super().run(*arguments)
            return [rows + (1e-2 if len(rows) == 64 else 0)]

    monkeypatch.setattr(onnxruntime, "InferenceSession", Other)
    (tmp_path / "encoder.onnx").write_text("old")
    with pytest.raises(VergenceError, match=r"differs by 1.0e-02 .* at a batch of 64"):
        formats.write_onnx(ours, tmp_path / "encoder.onnx")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


def test_a_missing_package_is_answered_by_the_pip_line(
    ours: LoadedEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "onnxscript" else find(name)
    )
    with pytest.raises(UserError, match=r"needs onnxscript: pip install 'vergence\[onnx\]'"):
        formats.write_onnx(ours, tmp_path / "encoder.onnx")


def test_a_program_is_read_back_bit_for_bit(ours: LoadedEncoder, tmp_path: Path) -> None:
    formats.write_program(ours, tmp_path / "encoder.pt2")
    again = load_encoder(str(tmp_path / "encoder.pt2"))
    assert again.digest == ours.digest
    np.testing.assert_array_equal(again(images(7, 16)), ours(images(7, 16)))


def test_safetensors_fill_plain_timm_strictly(resnet: LoadedEncoder, tmp_path: Path) -> None:
    formats.write_weights(resnet, tmp_path / "weights.safetensors")
    model = timm.create_model("resnet10t", num_classes=0)
    model.load_state_dict(load_file(tmp_path / "weights.safetensors"), strict=True)
    for n in BATCHES:
        np.testing.assert_allclose(timm_rows(model, images(n, 32)), resnet(images(n, 32)), atol=1e-4)
    with safe_open(tmp_path / "weights.safetensors", "pt") as file:
        assert json.loads(file.metadata()["card"])["mean"] == list(MEAN)


@pytest.mark.parametrize("which", ["resnet", "vit"])
def test_timm_builds_and_fills_the_model_from_its_folder_alone(
    which: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    encoder: LoadedEncoder = request.getfixturevalue(which)
    out = tmp_path / "encoder"
    for _ in range(2):  # again: replaced
        formats.write_timm(encoder, out)
        assert sorted(path.name for path in out.iterdir()) == ["config.json", "model.safetensors"]
    model = timm.create_model(f"local-dir:{out}", pretrained=True)
    for n in BATCHES:
        pixels = images(n, encoder.size)
        np.testing.assert_allclose(timm_rows(model, pixels), encoder(pixels), atol=1e-4)
    config = timm.data.resolve_model_data_config(model)  # type: ignore[attr-defined]
    told = config["input_size"], config["crop_pct"], config["interpolation"]
    assert told == ((3, encoder.size, encoder.size), 1.0, "bilinear")
    np.testing.assert_allclose((config["mean"], config["std"]), (MEAN, STD))


def test_what_timm_cannot_build_is_named_with_the_way_out(ours: LoadedEncoder, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"resnet18 with stem=cifar, width=0.25, .* export it as pt2 or onnx"):
        formats.write_timm(ours, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("settings", "seen"),
    [
        ({"grid": GridConfig(patch=8, stride=4), "norm": "layer"}, "one patch of 8 pixels at a time"),
        ({"edges": True}, "a picture's edges"),
    ],
)
def test_an_encoder_whose_backbone_sees_no_whole_picture_is_loaded_again_and_is_no_timm_model(
    settings: dict[str, Any], seen: str, tmp_path: Path
) -> None:
    config = EncoderConfig(name="resnet18", stem="cifar", width=0.125, **settings)
    encoder, pixels = exported(tmp_path, config, 16), images(4, 16)
    x = torch.from_numpy((pixels / 255 - MEAN) / STD).permute(0, 3, 1, 2).float()
    expected = encoder(pixels)
    with torch.no_grad():
        np.testing.assert_allclose(encoder.module.eval()(x), expected, atol=1e-4)
    with pytest.raises(
        UserError, match=rf"its backbone sees {seen}, so it is no model of pictures by itself"
    ):
        timm_backbone(encoder)
    for write, out in ((formats.write_timm, "timm"), (formats.write_weights, "a.safetensors")):
        with pytest.raises(UserError, match=rf"sees {seen}: .*export it as pt2 or onnx") as refused:
            write(encoder, tmp_path / out)
        assert "\n" not in str(refused.value)
        assert not (tmp_path / out).exists()
