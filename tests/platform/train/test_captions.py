"""A method that reads text, in the rank loop: captions of classes in, a zero-shot score of the holdout out."""

import json
from pathlib import Path

import numpy as np
import pytest
from ranks import run_ranks
from shard_files import png, write_shard

from vergence.pipelines.recipe import Recipe, build_method, load_recipe
from vergence.pipelines.resolve import data_facts, resolve
from vergence.platform.data.index import open_index
from vergence.platform.errors import UserError
from vergence.platform.runs.run import Run, locked
from vergence.platform.train.loop import RankLoop

NUM, CLASSES = 96, ("red", "green", "blue")


def shard_of(folder: Path, classes: bool = True) -> Path:
    """Noise in the colour that the class names."""
    generator = np.random.default_rng(0)
    samples = []
    for i in range(NUM):
        pixels = generator.integers(0, 60, (8, 8, 3), dtype=np.uint8)
        pixels[..., i % 3] += 150
        cls = {"cls": CLASSES[i % 3].encode()} if classes else {}
        samples.append((f"{i:03d}", {"png": png(pixels)} | cls))
    return write_shard(folder / "t-000000.tar", samples)


def recipe_of(shard: Path, name: str = "clip-cifar10", *more: str) -> Recipe:
    settings = (
        "data.holdout=0.25", "epochs=8", "encoder.width=0.0625", "batch.global=24", "views.0.size=8", "norm.group=12",
        "precision=fp32", "scale.workers=2", "track.every_steps=1", "optim.lr=0.003",
    )  # fmt: skip
    return load_recipe(name, [f"data.train={shard}", *settings, *more])


def train(rank: int, world_size: int, folder: Path) -> list[float]:
    """zero_shot after each epoch, as it is recorded."""
    recipe, index = recipe_of(folder / "t-000000.tar"), open_index(folder / "t-000000.tar", folder / "index")
    resolved = resolve(recipe, index, build_method(recipe, data_facts(recipe, index)))
    run = Run("clip", attempt="test")
    run.logs.mkdir(parents=True, exist_ok=True)
    loop, stream = RankLoop(resolved.job(run, {})), resolved.stream
    shares = (stream.share(step, rank, world_size) for step in range(resolved.steps))
    if rank:
        loop.run(shares)
        return []
    with locked(run):
        loop.run(shares)
    records = (json.loads(line) for line in (run.logs / "metrics.jsonl").read_text().splitlines())
    return [record["zero_shot"] for record in records if "zero_shot" in record]


def test_classes_are_told_by_their_names_after_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VERGENCE_HOME", str(tmp_path / "home"))
    shard_of(tmp_path)
    scores, _ = run_ranks(train, 2, tmp_path)
    assert len(scores) == 8
    assert scores[-1] > 0.9


def refused(shard: Path, folder: Path, name: str, *more: str) -> str:
    recipe, index = recipe_of(shard, name, *more), open_index(shard, folder / "index")
    with pytest.raises(UserError) as caught:
        resolve(recipe, index, build_method(recipe, data_facts(recipe, index)))
    return str(caught.value)


def test_what_cannot_be_captioned_is_refused_before_the_run(tmp_path: Path) -> None:
    shard = shard_of(tmp_path, classes=False)
    one = "scale.workers=1"
    assert "96 of 96 samples have no class" in refused(shard, tmp_path, "clip-cifar10", one)
    message = refused(shard, tmp_path, "clip-cifar10", one, "data.captions=[]")
    assert "no sample has a .txt" in message
    assert "data.captions makes text of the names of classes" in message
    captions = 'data.captions=["a {class}"]'
    shard = shard_of(tmp_path / "labelled")
    assert "simclr reads no text" in refused(shard, tmp_path, "simclr-cifar10", one, captions)
