"""A method that reads text, in the rank loop: captions of classes in, a zero-shot score of the holdout out."""

import json
from pathlib import Path

import numpy as np
import pytest
from ranks import run_ranks
from shard_files import png, write_shard
from stopped_runs import State, assert_bit_equal, go_on, undisturbed_and_stopped

from vergence.pipelines.recipe import Recipe, build_method, load_recipe
from vergence.pipelines.resolve import data_facts, resolve
from vergence.platform.data.index import open_index
from vergence.platform.errors import UserError
from vergence.platform.runs.run import Run

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
    narrow = "encoder.depth=1" if name.startswith("shared") else "encoder.width=0.0625"
    settings = (
        "data.holdout=0.25", "epochs=8", narrow, "batch.global=24", "views.0.size=8", "norm.group=12",
        "precision=fp32", "scale.workers=2", "track.every_steps=1", "optim.lr=0.003",
    )  # fmt: skip
    return load_recipe(name, [f"data.train={shard}", *settings, *more])


def train(rank: int, world_size: int, folder: Path) -> list[float]:
    """zero_shot after each epoch, as it is recorded."""
    recipe, index = recipe_of(folder / "t-000000.tar"), open_index(folder / "t-000000.tar", folder / "index")
    resolved = resolve(recipe, index, build_method(recipe, data_facts(recipe, index)))
    run = Run("clip", attempt="test")
    run.logs.mkdir(parents=True, exist_ok=True)
    go_on(resolved, run, rank, world_size)
    if rank:
        return []
    records = (json.loads(line) for line in (run.logs / "metrics.jsonl").read_text().splitlines())
    return [record["zero_shot"] for record in records if "zero_shot" in record]


def stopped_and_not(
    rank: int, world_size: int, folder: Path, name: str, zero: int, vocabulary: int
) -> list[State]:
    """The last states of a run of two epochs, and of one that was stopped in its second."""
    shard = folder / "t-000000.tar"
    recipe = recipe_of(shard, name, "epochs=2", f"scale.zero={zero}", f"data.vocabulary={vocabulary}")
    index = open_index(shard, folder / "index")
    resolved = resolve(recipe, index, build_method(recipe, data_facts(recipe, index)))
    assert resolved.steps == 6
    return undisturbed_and_stopped(resolved, name, rank, world_size, stop_at=4)


@pytest.mark.parametrize(
    ("name", "zero", "vocabulary"), [("clip-cifar10", 0, 256), ("shared_transformer-cifar10", 2, 300)]
)
def test_a_run_stopped_in_an_epoch_ends_bit_equal_to_one_that_was_not(
    name: str, zero: int, vocabulary: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VERGENCE_HOME", str(tmp_path / "home"))
    shard_of(tmp_path)
    states = run_ranks(stopped_and_not, 2, tmp_path, name, zero, vocabulary)[0]
    assert "model.scale.logit_scale" in states[0]
    assert len(states[0]["model.text.embedding.tokens.weight"]) == vocabulary + 2
    assert_bit_equal(states)


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
    words = "data.vocabulary=300"
    assert "simclr reads no text" in refused(shard, tmp_path, "simclr-cifar10", one, words)
