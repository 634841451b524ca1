"""Modules that train, from card and weights: timm's own models, ours, and what cannot be done for which."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_encoder import CONFIG, MEAN, STD, make_card, make_encoder

from vergence.methods.parts.backbones import EncoderConfig, build_encoder
from vergence.methods.torchvision_shim import timm
from vergence.platform.encoders.encoder import LoadedEncoder
from vergence.platform.encoders.export import export_encoder
from vergence.platform.encoders.load import load_encoder
from vergence.platform.encoders.rebuild import _own_settings, timm_backbone
from vergence.platform.errors import UserError

IMAGES = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
X = torch.from_numpy((IMAGES / 255 - MEAN) / STD).permute(0, 3, 1, 2).float()


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> LoadedEncoder:
    """A ResNet that timm.create_model cannot build."""
    folder = tmp_path_factory.mktemp("narrow") / "exports"
    return load_encoder(str(export_encoder(make_encoder(), make_card(), folder)))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> LoadedEncoder:
    """timm's resnet10t, as it is."""
    torch.manual_seed(0)
    config = EncoderConfig(name="resnet10t")
    card = make_card(backbone=config.model_dump(), dim=512, size=32)
    folder = tmp_path_factory.mktemp("plain") / "exports"
    return load_encoder(str(export_encoder(build_encoder(config), card, folder)))


def test_a_timm_model_gets_our_weights_and_a_fresh_classifier(plain: LoadedEncoder) -> None:
    model = timm_backbone(plain, num_classes=5, drop_path_rate=0.1)
    assert type(model) is type(timm.create_model("resnet10t"))
    assert model.training
    assert model(X).shape == (4, 5)
    assert any(
        getattr(block.drop_path, "drop_prob", 0) for block in model.modules() if hasattr(block, "drop_path")
    )
    with torch.no_grad():
        bare = timm_backbone(plain).eval()
        np.testing.assert_allclose(bare(X), plain(IMAGES), atol=1e-4)


def test_a_backbone_of_ours_gets_a_classifier_too(narrow: LoadedEncoder) -> None:
    model = timm_backbone(narrow, num_classes=5)
    first, trained = model.get_parameter("conv1.weight"), narrow.module.get_parameter("backbone.conv1.weight")
    assert model(X).shape == (4, 5)
    assert timm_backbone(narrow)(X).shape == (4, 128)
    own = narrow.trainable(num_classes=5)
    assert own.training
    assert own(X).shape == (4, 5)
    assert torch.equal(own.get_parameter("conv1.weight"), narrow.backbone_weights["conv1.weight"])
    assert first.shape == (16, 3, 3, 3)
    assert torch.equal(first, trained)
    trained.data.zero_()  # trained on, say
    assert torch.equal(timm_backbone(narrow).get_parameter("conv1.weight"), first)


def test_a_vit_of_another_size_gives_tokens_and_takes_arguments_of_timm(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = EncoderConfig(
        name="vit_tiny_patch16_224", patch_size=8, depth=2, pool="mean", positions="sincos", drop_path=0.1
    )
    card = make_card(backbone=config.model_dump(), dim=192, size=32)
    vit = load_encoder(str(export_encoder(build_encoder(config, image_size=32), card, tmp_path / "exports")))
    expected = vit(IMAGES)
    with torch.no_grad():
        np.testing.assert_allclose(timm_backbone(vit).eval()(X), expected, atol=1e-4)
        changed = timm_backbone(vit, drop_path_rate=0.3)
        assert max(block.drop_path1.drop_prob for block in changed.blocks[1:]) == pytest.approx(0.3)
        np.testing.assert_allclose(changed.eval()(X), expected, atol=1e-4)
        assert vit.module.features(X).shape == (4, 16 + 1, 192)  # a 4 x 4 grid after the class token
    assert timm_backbone(vit, num_classes=5)(X).shape == (4, 5)
    with pytest.raises(UserError, match=r"its weights do not fit what was built: .*pos_embed"):
        timm_backbone(vit, img_size=64)


def test_edges_and_chosen_kernels_are_rebuilt_but_a_backbone_of_edges_is_no_model_of_pictures(
    tmp_path: Path,
) -> None:
    torch.manual_seed(0)
    config = EncoderConfig(name="skresnet18", width=0.125, sk_ratio=0.25, edges=True)
    card = make_card(backbone=config.model_dump(), dim=64, size=32)
    encoder = load_encoder(str(export_encoder(build_encoder(config), card, tmp_path / "exports")))
    with torch.no_grad():
        np.testing.assert_allclose(encoder.module.eval()(X), encoder(IMAGES), atol=1e-4)
    for build in (timm_backbone, lambda encoder: timm_backbone(encoder, drop_path_rate=0.1)):
        with pytest.raises(UserError, match=r"sees a picture's edges.*train `\.module`"):
            build(encoder)


def test_what_cannot_be_done_says_for_which_backbone(
    plain: LoadedEncoder, narrow: LoadedEncoder, tmp_path: Path
) -> None:
    with pytest.raises(
        UserError,
        match=r"resnet18 with stem=cifar, width=0\.25, which timm\.create_model cannot build.*no drop_path_rate",
    ):
        timm_backbone(narrow, drop_path_rate=0.1)
    with pytest.raises(UserError, match=r"timm cannot build resnet10t with img_size=64"):
        timm_backbone(plain, img_size=64)
    with pytest.raises(UserError, match=r"its weights do not fit"):
        timm_backbone(plain, in_chans=1)
    assert (
        _own_settings(EncoderConfig(name="resnet161")) == "stages=(64, 128, 512, 512)"
    )  # a name that timm lacks
    assert not _own_settings(EncoderConfig(name="resnet101"))
    folder = export_encoder(make_encoder(), make_card(), tmp_path / "exports")
    (folder / "encoder.json").unlink()
    for build in (timm_backbone, lambda encoder: encoder.module):
        with pytest.raises(UserError, match=r"without its card encoder\.json"):
            build(load_encoder(str(folder)))


def test_a_card_that_describes_another_encoder_is_refused(tmp_path: Path) -> None:
    folder = export_encoder(make_encoder(), make_card(), tmp_path / "exports")
    for backbone, message in (
        (CONFIG.model_dump() | {"width": 0.5}, "its weights do not fit what was built"),
        (CONFIG.model_dump() | {"squeeze": 2}, r"settings that this version does not know \(squeeze\)"),
        (CONFIG.model_dump() | {"name": "resnet19"}, "timm has no model 'resnet19'"),
    ):
        (folder / "encoder.json").write_text(make_card(backbone=backbone).model_dump_json(by_alias=True))
        with pytest.raises(UserError, match=message):
            load_encoder(str(folder)).module  # noqa: B018
