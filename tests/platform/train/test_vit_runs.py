"""A vision transformer with small crops and dropped paths through the rank loop, and out of it as an encoder."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ranks import alone
from safetensors.torch import load_file
from shard_files import png, write_shard

from vergence.methods.torchvision_shim import timm
from vergence.pipelines.recipe import Recipe, build_method
from vergence.pipelines.resolve import data_facts, resolve
from vergence.platform.data.index import open_index
from vergence.platform.encoders.export import EncoderCard, export_encoder
from vergence.platform.encoders.load import load_encoder
from vergence.platform.encoders.rebuild import timm_backbone
from vergence.platform.runs import commit as commits
from vergence.platform.runs.run import Run, locked
from vergence.platform.train.loop import RankLoop

ENCODER = {
    "name": "vit_tiny_patch16_224",
    "patch_size": 4,
    "depth": 2,
    "drop_path": 0.4,
    "positions": "sincos",
    "freeze_patches": True,
}
RECIPE = {
    "epochs": 2,
    "precision": "fp32",
    "method": {"name": "byol", "hidden_dim": 16, "embed_dim": 8, "momentum": {"peak": 0.9, "end": 1.0}},
    "encoder": ENCODER,
    "views": [
        {"count": 2, "size": 16, "recipe": "byol-cifar"},
        {"count": 3, "size": 8, "recipe": "simclr-cifar"},
    ],
    "norm": {"group": 4},
    "batch": {"global": 16, "micro": 8, "regime": "two-pass"},
    "optim": {"name": "adamw", "lr": 0.001, "weight_decay": {"peak": 0.04, "end": 0.4}},
    "schedule": {"warmup_epochs": 0.5},
    "scale": {"workers": 1},
}


def ran(folder: Path, name: str, stop: int | None, **changes: Any) -> tuple[RankLoop, Recipe]:
    """A run to its end, with a stop after a step; the last loop."""
    shard = folder / "t-000000.tar"
    if not shard.exists():
        pixels = np.random.default_rng(0).integers(0, 256, (40, 16, 16, 3), dtype=np.uint8)
        write_shard(shard, ((f"{i:02d}", {"png": png(image)}) for i, image in enumerate(pixels)))
    raw = {**RECIPE, "data": {"train": str(shard), "holdout": 0.1}, **changes}
    recipe, index = Recipe.parse(raw, "recipe"), open_index(str(shard), folder / "index")
    resolved = resolve(recipe, index, build_method(recipe, data_facts(recipe, index)))
    run = Run(name, attempt="test")
    run.logs.mkdir(parents=True)
    job, stream = resolved.job(run, {}), resolved.stream
    loop = RankLoop(job, None, lambda: loop.step + 1 == stop)
    with locked(run):
        outcome = loop.run(stream.share(step, 0, 1) for step in range(resolved.steps))
        if outcome.status == "interrupted":
            loop = RankLoop(job, commits.newest(run.commits))
            outcome = loop.run(stream.share(step, 0, 1) for step in range(loop.step, resolved.steps))
    assert outcome.status == "finished"
    return loop, recipe


@alone
def test_dropped_paths_and_small_crops_resume_bit_equal_and_the_encoder_leaves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VERGENCE_HOME", str(tmp_path / "home"))
    calm, recipe = ran(tmp_path, "calm", None)
    stopped, _ = ran(tmp_path, "stopped", 3)
    undropped, _ = ran(tmp_path, "undropped", None, encoder={**ENCODER, "drop_path": 0.0})
    state, other, third = (loop.engine.state() for loop in (calm, stopped, undropped))
    assert all(torch.equal(value, other[name]) for name, value in state.items())
    moved = "model.encoder.backbone.blocks.1.attn.qkv.weight"
    assert not torch.equal(state[moved], third[moved])  # there were paths to drop
    start = build_method(recipe, calm.method.data).state_dict()
    for name in ("pos_embed", "patch_embed.proj.weight"):
        assert torch.equal(state[f"model.encoder.backbone.{name}"], start[f"encoder.backbone.{name}"])
        assert f"optim.encoder.backbone.{name}.exp_avg" not in state
    leaves(calm, recipe, tmp_path)


def leaves(loop: RankLoop, recipe: Recipe, folder: Path) -> None:
    """Exported at the size of the largest view, and used by others."""
    encoder = loop.method.encoder.eval()
    card = EncoderCard(
        name="vit", method="byol", backbone=recipe.encoder.model_dump(), dim=192, size=recipe.size,
        mean=recipe.data.mean, std=recipe.data.std, images_seen=1, recipe_digest="", data_digest="", code_version="",
    )  # fmt: skip
    exported = export_encoder(encoder, card, folder / "exports")
    images = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (3, 16, 16, 3), dtype=np.uint8))
    torch.save(images, folder / "images.pt")
    stranger = (
        "import sys, torch; program, images, out = sys.argv[1:];"
        "torch.save(torch.export.load(program).module()(torch.load(images)), out);"
        "assert not {'vergence', 'timm'} & set(sys.modules)"
    )
    files = [exported / "encoder.pt2", folder / "images.pt", folder / "h.pt"]
    subprocess.run([sys.executable, "-c", stranger, *map(str, files)], check=True, env={})
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in (recipe.data.mean, recipe.data.std))
    x = (images.permute(0, 3, 1, 2) / 255 - mean) / std
    with torch.no_grad():
        expected = encoder(x)
        torch.testing.assert_close(torch.load(folder / "h.pt"), expected, atol=1e-5, rtol=1e-5)
        own = timm.create_model("vit_tiny_patch16_224", img_size=16, patch_size=4, depth=2, num_classes=0)
        own.load_state_dict(load_file(exported / "encoder.safetensors"))
        torch.testing.assert_close(own.eval()(x), expected)
        loaded = load_encoder(str(exported))
        for drop_path_rate in (0.0, 0.1):
            torch.testing.assert_close(
                timm_backbone(loaded, drop_path_rate=drop_path_rate).eval()(x), expected
            )
        torch.testing.assert_close(loaded.module.eval()(x), expected)
