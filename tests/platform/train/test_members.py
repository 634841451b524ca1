"""What is in a sample besides its image, or of it, in the rank loop, stopped in the middle of an epoch.

CPC on sounds cut into windows and on images cut into patches; CMC on images with maps.
"""

import io
from pathlib import Path

import numpy as np
import pytest
from ranks import run_ranks
from shard_files import png, wav, write_shard
from stopped_runs import State, assert_bit_equal, undisturbed_and_stopped

from vergence.pipelines.recipe import Recipe, build_method, load_recipe
from vergence.pipelines.resolve import data_facts, resolve
from vergence.platform.data.index import open_index

NUM, WITHOUT = 48, range(0, 48, 8)
COMMON = (
    "epochs=2",
    "batch.global=12",
    "batch.micro=3",
    "norm.group=3",
    "scale.workers=2",
    "precision=fp32",
    "data.holdout=0",
)
SETTINGS = {
    "cpc-spoken_digits": (
        "method.window=300", "method.steps=2", "method.num_negatives=8", "method.negatives=all", "encoder.width=0.03",
        "encoder.strides=[5, 4]", "method.context_dim=8",
    ),
    "cpc-cifar10": (
        "views.0.size=12", "encoder.grid={patch: 6, stride: 3}", "encoder.width=0.0625", "method.steps=1",
        "method.context_dim=8", "scale.zero=2",
    ),
    "cmc-camvid": ("views.0.size=8", "encoder.width=0.0625", "method.num_negatives=16"),
}  # fmt: skip


def shard_of(folder: Path) -> Path:
    """Noise to see and to hear; sounds are longer and shorter than the window, and some samples have no depth."""
    rng = np.random.default_rng(0)
    samples = []
    for i in range(NUM):
        sound = rng.integers(-9000, 9000, (250 + 40 * (i % 7), 1)).astype(np.int16)
        picture = rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)
        maps, array = rng.integers(0, 12, (12, 12, 2), dtype=np.uint8), io.BytesIO()
        if i in WITHOUT:
            maps[..., 0] = 255
        np.save(array, maps)
        samples.append((f"{i:03d}", {"png": png(picture), "wav": wav(sound), "npy": array.getvalue()}))
    return write_shard(folder / "t-000000.tar", samples)


def recipe_of(shard: Path, name: str) -> Recipe:
    return load_recipe(name, [f"data.train={shard}", *COMMON, *SETTINGS[name]])


def both(rank: int, world_size: int, folder: Path, name: str) -> list[State]:
    shard = folder / "t-000000.tar"
    recipe, index = recipe_of(shard, name), open_index(shard, folder / "index")
    resolved = resolve(recipe, index, build_method(recipe, data_facts(recipe, index)))
    assert resolved.steps == 8
    return undisturbed_and_stopped(resolved, name, rank, world_size, stop_at=6)


@pytest.mark.parametrize("name", list(SETTINGS))
def test_a_run_stopped_in_an_epoch_ends_bit_equal_to_one_that_was_not(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VERGENCE_HOME", str(tmp_path / "home"))
    shard = shard_of(tmp_path)
    states = run_ranks(both, 2, tmp_path, name)[0]
    assert_bit_equal(states)
    if name != "cmc-camvid":
        assert "model.seed" in states[0]  # of windows, patches and negatives
        return
    recipe, index = recipe_of(shard, name), open_index(shard, tmp_path / "index")
    before = build_method(recipe, data_facts(recipe, index)).state_dict()
    same = {
        i: (states[0][f"model.banks.{i}.rows"] == before[f"banks.{i}.rows"].numpy()).all(axis=1)
        for i in range(3)
    }
    assert np.flatnonzero(same[1]).tolist() == list(WITHOUT)
    assert not (same[0] | same[2]).any()
    moved = [
        key
        for key in before
        if key.startswith("maps.") and not np.array_equal(states[0][f"model.{key}"], before[key])
    ]
    assert len(moved) == 2 * 4 * 3  # weights, gains and offsets of four layers for each map
