from pathlib import Path

import pytest
import torch

from vergence.pipelines.recipe import Recipe, load_recipe
from vergence.pipelines.resolve import need_of
from vergence.pipelines.scale import divides, plan_for, told, trials_at_a_time, with_scale
from vergence.platform.cluster.capacity import AskedScale, Found, Node, ScaleConfig, fits, found_here, settle
from vergence.platform.errors import UserError

AUTO = AskedScale(workers="auto", gpus_per_worker="auto")


def settled(asked: AskedScale, found: Found, batch: int = 256) -> tuple[object, object]:
    scale = settle(asked, found, lambda workers: batch % workers == 0)
    return scale.workers, scale.gpus_per_worker


@pytest.mark.parametrize(
    ("asked", "found", "expected"),
    [
        (AUTO, Found(16, 1), (1, 1)),
        (AUTO, Found(128, 8), (8, 1)),
        (AUTO, Found(128, 7), (4, 1)),  # 256 does not divide by 5, 6 or 7
        (AUTO, Found(2, 0), (2, 0)),
        (AUTO, Found(64, 0), (8, 0)),
        (AskedScale(workers="auto", cpus_per_worker=4, gpus_per_worker="auto"), Found(8, 0), (2, 0)),
        (AskedScale(workers="auto", cpus_per_worker=4), Found(2, 0), (1, 0)),
        (AskedScale(workers="auto", gpus_per_worker=0), Found(4, 8), (4, 0)),
        (AskedScale(workers=4, gpus_per_worker="auto"), Found(16, 4), (4, 1)),
        (AskedScale(workers=4, gpus_per_worker="auto"), Found(16, 2), (4, 0)),
        (AskedScale(workers=3, gpus_per_worker=0), Found(16, 2), (3, 0)),
    ],
)
def test_auto_takes_a_gpu_a_worker_where_there_is_one_and_cpus_where_there_is_none(
    asked: AskedScale, found: Found, expected: tuple[int, int]
) -> None:
    assert settled(asked, found) == expected


def test_with_cuda_there_a_recipe_for_own_images_trains_on_every_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    found = found_here()
    recipe = with_scale(load_recipe("images"), found)
    need = need_of(recipe)
    assert (need.scale.workers, need.scale.gpus_per_worker, need.gpus) == (4, 1, 4)
    assert told(found, need.scale).startswith("4 GPUs, all used; ")
    assert recipe.identity() == load_recipe("images").identity()


def test_without_a_gpu_one_line_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setenv("PATH", str(tmp_path))
    found = found_here()
    assert told(found, ScaleConfig()) == f"no GPU; {found.cpus} CPUs"
    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\necho 80000, 9.0\n")
    smi.chmod(0o755)
    assert "1 GPU of the driver, but this torch is a build without CUDA" in told(found_here(), ScaleConfig())


def test_what_is_there_and_not_used_is_said_with_the_cure() -> None:
    assert "1 not used with 3 workers" in told(Found(8, 4), ScaleConfig(workers=3, gpus_per_worker=1))
    line = told(Found(8, 4), ScaleConfig(workers=2))
    assert "4 GPUs, not used" in line
    assert "scale.gpus_per_worker=auto" in line


@pytest.mark.parametrize(
    ("settings", "fits"),
    [
        (["batch.global=256", "norm.group=64"], [1, 2, 4, 8, 16]),
        (["batch.global=96", "norm.group=48"], [1, 2, 4, 6, 8, 12, 16]),
        (["batch.global=256", "norm.group=64", "batch.micro=128"], [1, 2]),
        (["batch.global=12", "norm.group=global"], [1, 2, 3, 4, 6, 12]),
    ],
)
def test_workers_share_batch_and_norm_groups(settings: list[str], fits: list[int]) -> None:
    recipe: Recipe = load_recipe("simclr-cifar10", settings)
    assert [n for n in range(1, 17) if divides(recipe, n)] == fits


@pytest.mark.parametrize(
    ("settings", "cure"),
    [
        (["scale.workers=1", "norm.group=32"], "batch.global=64 fits"),
        (["scale.workers=2", "norm.group=64"], "batch.global=64 fits"),
        (["scale.workers=3", "norm.group=global"], "batch.global=90 fits"),
        (["scale.workers=1", "norm.group=128"], "pack more images, or set a smaller norm.group"),
    ],
)
def test_a_batch_that_is_too_large_is_answered_by_one_that_divides(settings: list[str], cure: str) -> None:
    recipe = load_recipe("simclr-cifar10", ["data.holdout=0.02", "batch.global=256", *settings])
    with pytest.raises(
        UserError, match=r"more than the 91 training samples \(of 92, holdout 0\.02\)"
    ) as caught:
        plan_for(recipe, 92)
    assert cure in str(caught.value)
    if "fits" in cure:
        assert plan_for(load_recipe("simclr-cifar10", [*settings, cure.split()[0]]), 92)


@pytest.mark.parametrize(
    ("num_samples", "held"), [(100, 10), (576, 57), (5000, 500), (20_000, 500), (25_000, 500), (50_000, 1000)]
)
def test_the_holdout_means_something_also_for_few_images(num_samples: int, held: int) -> None:
    recipe = load_recipe("images-small")
    assert abs(plan_for(recipe, num_samples).num_holdout - held) <= 1
    explicit = load_recipe("images-small", ["data.holdout=0.02"])
    assert plan_for(explicit, 50_000).num_holdout == 1000


def test_where_no_machine_is_asked_numbers_are_wanted() -> None:
    with pytest.raises(UserError, match=r"auto is what is found where the run starts.* scale\.workers=1"):
        need_of(load_recipe("images"))


def test_on_a_cluster_readers_find_room_beside_the_workers() -> None:
    recipe = load_recipe("images", ["batch.global=64"])
    two = tuple(Node(8.0) for _ in range(2))
    scale = with_scale(recipe, Found(16, 0, nodes=two)).scale
    assert (scale.workers, scale.gpus_per_worker) == (8, 0)
    assert fits(need_of(with_scale(recipe, Found(16, 0, nodes=two))), two) is None
    small = (Node(4.0),)
    few = with_scale(recipe, Found(4, 0, nodes=small))
    assert few.scale.workers == 2  # and as many readers
    assert fits(need_of(few), small) is None


@pytest.mark.parametrize(
    ("found", "asked", "trials", "expected"),
    [
        (Found(128, 8), [], 12, (1, 1)),  # eight at a time
        (Found(128, 8), [], 3, (2, 1)),  # all twelve would not be needed: two GPUs each
        (Found(128, 1), [], 12, (1, 1)),
        (Found(2, 0), [], 12, (1, 0)),
        (Found(16, 0), [], 4, (4, 0)),
        (Found(16, 8), ["scale.gpus_per_worker=0"], 4, (4, 0)),
        (Found(128, 8), ["scale.workers=4"], 12, (4, 1)),
        (Found(128, 8), ["scale.workers=16"], 12, (16, 0)),
    ],
)
def test_trials_of_a_search_share_what_is_found(
    found: Found, asked: list[str], trials: int, expected: tuple[int, int]
) -> None:
    recipe = load_recipe("images", ["batch.global=64", *asked])
    at_a_time = min(trials, trials_at_a_time(recipe, found))
    scale = with_scale(recipe, found, at_a_time).scale
    assert (scale.workers, scale.gpus_per_worker) == expected
    assert at_a_time * expected[0] * expected[1] <= found.gpus


def test_more_trials_at_a_time_than_gpus_are_not_moved_to_cpus_in_silence() -> None:
    scale = with_scale(load_recipe("images"), Found(128, 2), trials=4).scale
    assert (scale.workers, scale.gpus_per_worker) == (1, 1)  # which the machine then refuses, by numbers
