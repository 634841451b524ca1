"""What is decided before a run starts: which encoders it refuses."""

import io
from pathlib import Path

import numpy as np
import pytest
from shard_files import png, wav, write_shard
from torch import nn

from vergence.pipelines import cli
from vergence.pipelines.recipe import build_method, load_recipe
from vergence.pipelines.resolve import data_facts, resolve
from vergence.platform.data.index import open_index
from vergence.platform.errors import UserError


@pytest.fixture
def shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VERGENCE_HOME", str(tmp_path / "home"))
    pixels = np.random.default_rng(0).integers(0, 256, (64, 8, 8, 3), dtype=np.uint8)
    return write_shard(tmp_path / "t-000000.tar", ((f"{i}", {"png": png(p)}) for i, p in enumerate(pixels)))


def settings(shard: Path, *more: str) -> list[str]:
    return [f"data.train={shard}", "batch.global=32", "scale.workers=1", "precision=fp32", *more]


def test_an_encoder_that_folds_tokens_into_the_batch_is_refused_where_groups_would_mix_them(
    shard: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    levit = settings(
        shard, "encoder.name=levit_128s", "views.0.size=224", "encoder.stem=default", "encoder.width=1"
    )
    assert cli.main(["pretrain", "simclr-cifar10", "--dry-run", *levit, "norm.group=8"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "encoder.name=levit_128s" in line
    assert "encoder.backbone.stages.0.blocks.0.attn.qkv.bn" in line
    assert cli.main(["pretrain", "simclr-cifar10", "--dry-run", *levit, "norm.group=global"]) == 0


def test_an_encoder_with_an_unknown_norm_is_refused_by_name(shard: Path, tmp_path: Path) -> None:
    recipe = load_recipe("simclr-cifar10", settings(shard))
    index = open_index(str(shard), tmp_path / "index")
    method = build_method(recipe, data_facts(recipe, index))
    method.encoder.backbone.bn1 = nn.SyncBatchNorm(16)
    with pytest.raises(
        UserError, match=r"resnet18: encoder\.backbone\.bn1 is a torch.*SyncBatchNorm"
    ) as caught:
        resolve(recipe, index, method)
    assert caught.value.exit_code == 2


def test_views_that_move_pixels_are_refused_where_maps_are_cropped_with_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VERGENCE_HOME", str(tmp_path / "home"))
    pixels = np.random.default_rng(0).integers(0, 256, (64, 8, 8, 3), dtype=np.uint8)
    maps = io.BytesIO()
    np.save(maps, pixels[0, ..., :2])
    members = ((f"{i}", {"png": png(p), "npy": maps.getvalue()}) for i, p in enumerate(pixels))
    shard = write_shard(tmp_path / "t-000000.tar", members)
    index = open_index(str(shard), tmp_path / "index")

    def resolved(*more: str) -> None:
        recipe = load_recipe("cmc-camvid", settings(shard, "norm.group=32", *more))
        resolve(recipe, index, build_method(recipe, data_facts(recipe, index)))

    resolved()
    for moved in ("views.0.rotate=0.5", "views.0.rand_augment=1", "views.0.recipe=infomin"):
        with pytest.raises(UserError, match="set rotate and rand_augment to 0"):
            resolved(moved)


def test_a_run_over_sounds_is_refused_where_they_hold_no_prediction_and_where_nothing_can_be_registered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VERGENCE_HOME", str(tmp_path / "home"))
    noise = np.random.default_rng(0).integers(-999, 999, (70, 3000, 1)).astype(np.int16)
    shard = write_shard(tmp_path / "t-000000.tar", ((f"{i}", {"wav": wav(x)}) for i, x in enumerate(noise)))
    index = open_index(str(shard), tmp_path / "index", images=False)

    def resolved(*more: str) -> None:
        recipe = load_recipe("cpc-spoken_digits", settings(shard, *more))
        resolve(recipe, index, build_method(recipe, data_facts(recipe, index)))

    resolved()
    with pytest.raises(
        UserError,
        match=r"cpc on waves cannot take the field audio: a sequence of 4 steps holds no prediction over 12",
    ):
        resolved("method.window=500")
    with pytest.raises(UserError, match=r"track\.register=digits: only encoders of images are registered"):
        resolved("track.register=digits")
    with pytest.raises(UserError, match=r"encoder: a sequence is an image's patches"):
        resolved("encoder={name: resnet18, norm: layer}")
