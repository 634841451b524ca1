"""Export: what is written, that it says and gives the same as the encoder, and that a bad one is refused."""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from tiny_encoder import CONFIG, MEAN, STD, make_card, make_encoder
from torch import Tensor, nn

from vergence.methods.method import Encoder
from vergence.methods.parts.backbones import EncoderConfig, build_encoder
from vergence.platform.encoders.export import EncoderCard, export_encoder, export_weights
from vergence.platform.encoders.load import load_encoder
from vergence.platform.errors import VergenceError


def expected_embeddings(encoder: nn.Module, images: np.ndarray) -> np.ndarray:
    """The chain by hand, in float64, one step after the other."""
    pixels = (images.astype(np.float64) / 255 - np.array(MEAN)) / np.array(STD)
    with torch.no_grad():
        return encoder.double().eval()(torch.from_numpy(pixels.transpose(0, 3, 1, 2))).numpy()


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Encoder, Path]:
    encoder = make_encoder()
    folder = export_encoder(encoder, make_card(), tmp_path_factory.mktemp("run") / "exports")
    return encoder, folder


def test_export_gives_the_encoder_in_eval_mode_for_any_batch(exported: tuple[Encoder, Path]) -> None:
    encoder, folder = exported
    assert encoder.training  # the original is left alone
    program = torch.export.load(folder / "encoder.pt2").module()
    images = np.random.default_rng(1).integers(0, 256, (64, 16, 16, 3), dtype=np.uint8)
    expected = expected_embeddings(copy.deepcopy(encoder), images)
    for n in (1, 7, 64):
        got = program(torch.from_numpy(images[:n])).numpy()
        np.testing.assert_allclose(got, expected[:n], atol=1e-5)


def test_all_of_an_export_is_on_the_disk_before_its_folder_has_its_name(
    tmp_path: Path, disk_events: list[tuple[str, str]]
) -> None:
    folder = export_encoder(make_encoder(), make_card(), tmp_path / "exports")
    (renamed,) = [i for i, (what, path) in enumerate(disk_events) if what == "renamed" and "exports" in path]
    draft = disk_events[renamed][1]
    synced = {path for what, path in disk_events[:renamed] if what == "synced"}
    assert {draft, *(f"{draft}/{path.name}" for path in folder.iterdir())} <= synced
    assert ("synced", str(tmp_path)) in disk_events[renamed:]


def test_safetensors_fill_the_backbone_under_its_own_names(exported: tuple[Encoder, Path]) -> None:
    encoder, folder = exported
    with safe_open(folder / "encoder.safetensors", "pt") as file:
        weights = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        card = json.loads(file.metadata()["card"])
    assert card["backbone"]["name"] == "resnet18"
    fresh = build_encoder(CONFIG).backbone
    fresh.load_state_dict(weights, strict=True)
    for key, tensor in encoder.backbone.state_dict().items():
        assert torch.equal(tensor, weights[key])


def test_card_reads_back_and_its_lines_of_python_work(
    exported: tuple[Encoder, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, folder = exported
    assert EncoderCard.model_validate_json((folder / "encoder.json").read_text()) == make_card()
    text = (folder / "card.md").read_text()
    assert "uint8 array (n, 16, 16, 3)" in text
    plain = next(block for block in text.split("```python\n")[1:] if "torch.export.load" in block).split(
        "```"
    )[0]
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {"images": np.zeros((3, 16, 16, 3), np.uint8)}
    exec(plain, names)
    assert names["embeddings"].shape == (3, 128)


def test_an_export_is_replaced_as_a_whole_and_leaves_nothing_beside(tmp_path: Path) -> None:
    folder = tmp_path / "exports"
    export_encoder(make_encoder(), make_card(), folder)
    (folder / "old").touch()
    export_encoder(make_encoder(), make_card(images_seen=2), folder)
    assert sorted(p.name for p in folder.iterdir()) == [
        "card.md",
        "encoder.json",
        "encoder.pt2",
        "encoder.safetensors",
    ]
    assert load_encoder(str(folder)).card.images_seen == 2
    assert [p.name for p in tmp_path.iterdir()] == ["exports"]


class Unsteady(nn.Module):
    """Gives something else at every batch size: its program cannot be equal to it."""

    def forward(self, images: Tensor) -> Tensor:
        return images.mean(dim=(2, 3)) + torch.rand(3)


def test_a_program_that_differs_is_refused_and_the_old_export_stays(tmp_path: Path) -> None:
    folder = tmp_path / "exports"
    export_encoder(make_encoder(), make_card(), folder)
    before = load_encoder(str(folder)).digest
    with pytest.raises(VergenceError, match="differs by"):
        export_encoder(Unsteady(), make_card(dim=3), folder)
    broken = make_encoder()
    broken.backbone.conv1.weight.data[0] = float("nan")
    with pytest.raises(VergenceError, match="differs by nan"):
        export_encoder(broken, make_card(), folder)
    with pytest.raises(VergenceError, match="dim is 64"):
        export_encoder(make_encoder(), make_card(dim=64), folder)
    assert load_encoder(str(folder)).digest == before
    assert [p.name for p in tmp_path.iterdir()] == ["exports"]


def test_an_encoder_that_takes_no_images_is_its_weights_and_its_card(tmp_path: Path) -> None:
    config = EncoderConfig(name="waves", width=1 / 64, norm="layer")
    encoder = build_encoder(config)
    card = make_card(backbone=config.model_dump(), dim=8, size=0)
    folder = export_weights(encoder, card, tmp_path / "exports")
    assert sorted(path.name for path in folder.iterdir()) == ["encoder.json", "encoder.safetensors"]
    backbone = json.loads((folder / "encoder.json").read_text())["backbone"]
    again = build_encoder(EncoderConfig.model_validate_json(json.dumps(backbone)))
    again.load_state_dict(load_file(folder / "encoder.safetensors"))
    waves = torch.from_numpy(np.random.default_rng(0).normal(size=(2, 900))).float()
    assert torch.equal(again(waves), encoder(waves))
