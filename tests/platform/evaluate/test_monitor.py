import contextlib
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from ranks import run_ranks
from shard_files import png, write_shard
from torch import Tensor, nn

from vergence.platform.data.index import open_index
from vergence.platform.data.plan import Plan
from vergence.platform.evaluate.config import MonitorConfig
from vergence.platform.evaluate.monitor import Monitor, remarks, verdict
from vergence.platform.evaluate.sweep import Sweep

NUM = 41


class Mean(nn.Module):
    """Mean colour: (n, 3, H, W) -> (n, 3)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


def pictures() -> tuple[list[str], list[bytes]]:
    """Keys, and images that show their class as a colour; one of them is damaged."""
    generator, images = np.random.default_rng(0), []
    for i in range(NUM):
        pixels = generator.integers(0, 60, (8, 8, 3), dtype=np.uint8)
        pixels[..., i % 3] += 150
        images.append(b"" if i == 5 else png(pixels))
    return [f"{i:03d}" for i in range(NUM)], images


def make_shards(folder: Path, labelled: bool = True) -> None:
    label(folder, [b"%d" % (i % 3) if labelled else None for i in range(NUM)])


def evaluate(
    rank: int,
    world_size: int,
    folder: Path,
    ids: Sequence[int] | np.ndarray = range(NUM),
    encoder: nn.Module | None = None,
) -> tuple[dict[str, float], int]:
    sweep = Sweep(
        open_index(folder / "m-000000.tar", folder / f"index-{rank}-{world_size}"),
        np.array(ids),
        size=8,
        mean=(0.5, 0.5, 0.5),
        std=(0.2, 0.2, 0.2),
        device=torch.device("cpu"),
        threads=1,
        keep=True,
    )
    return Monitor(MonitorConfig(k=5), sweep)(encoder or Mean(), contextlib.nullcontext), sweep.num_bad


def test_scores_are_the_same_on_1_and_2_ranks(tmp_path: Path) -> None:
    make_shards(tmp_path)
    (one, bad), *_ = run_ranks(evaluate, 1, tmp_path)
    two = run_ranks(evaluate, 2, tmp_path)
    assert one["knn"] == 1.0
    assert (one["holdout"], one["holdout_bad"]) == (NUM - 1, 1)
    assert bad == 1
    assert sum(bad for _, bad in two) == 1
    for metrics, _ in two:
        assert metrics == pytest.approx(one)


def test_fewer_samples_than_ranks_are_scored_and_give_no_verdict(tmp_path: Path) -> None:
    make_shards(tmp_path)
    for metrics, _ in run_ranks(evaluate, 3, tmp_path, range(2)):
        assert metrics["holdout"] == 2
        assert verdict(metrics, 3) is None


def label(folder: Path, classes: Iterable[bytes | None]) -> None:
    """The shard anew, with these bytes as classes; None: none."""
    write_shard(
        folder / "m-000000.tar",
        [
            (key, {"png": data} | ({} if text is None else {"cls": text}))
            for key, data, text in zip(*pictures(), classes)
        ],
    )


def test_a_sample_without_a_class_is_left_out_of_the_knn_and_told(tmp_path: Path) -> None:
    """One such sample made the effective rank the score of the run, on the log of one rank."""
    classes = [b"%d" % (i % 3) for i in range(NUM)]
    label(tmp_path, [None if i in (3, 10) else text for i, text in enumerate(classes)])
    one, two = ([metrics for metrics, _ in run_ranks(evaluate, ranks, tmp_path)] for ranks in (1, 2))
    for metrics in one + two:
        assert metrics == pytest.approx(one[0])
    assert (one[0]["knn"], one[0]["holdout"], one[0]["holdout_unlabelled"]) == (1.0, NUM - 1, 2)
    assert remarks({**one[0], "h_std": 1, "h_effective_rank": 9}, 3) == (
        "kNN over 38 of 40 held-out samples: the others have no class"
    )


def test_words_are_classes(tmp_path: Path) -> None:
    label(tmp_path, [(b"red", b"green", b"blue")[i % 3] for i in range(NUM)])
    metrics, _ = evaluate(0, 1, tmp_path)
    assert (metrics["knn"], metrics["holdout_unlabelled"]) == (1.0, 0)
    assert remarks({**metrics, "h_std": 1, "h_effective_rank": 9}, 3) is None


def test_one_class_in_the_holdout_is_too_few_and_that_is_told(tmp_path: Path) -> None:
    label(tmp_path, [b"red" if i == 0 else None for i in range(NUM)])
    metrics, _ = evaluate(0, 1, tmp_path)
    assert "knn" not in metrics
    assert "no kNN: 39 of 40 held-out samples have no class" in remarks(metrics, 3)
    assert remarks({**metrics, "h_std": 0}, 3).startswith("collapsed")


def test_without_labels_there_is_no_knn(tmp_path: Path) -> None:
    make_shards(tmp_path, labelled=False)
    metrics, _ = evaluate(0, 1, tmp_path)
    assert set(metrics) == {"h_std", "h_effective_rank", "holdout", "holdout_bad"}


def test_classes_that_alternate_give_an_encoder_that_knows_nothing_no_score(tmp_path: Path) -> None:
    """The holdout is drawn: every tenth sample would be of one class, and the kNN 1."""
    pixels = np.random.default_rng(0).integers(0, 255, (1000, 4, 4, 3), dtype=np.uint8)
    samples = [(f"{i:03d}", {"png": png(pixels[i]), "cls": b"%d" % (i % 10)}) for i in range(1000)]
    write_shard(tmp_path / "m-000000.tar", samples)
    metrics, _ = evaluate(0, 1, tmp_path, Plan(1000, 0.1, 0, 100).holdout_ids())
    assert metrics["holdout"] == 100
    assert 0 < metrics["knn"] < 0.25


def test_collapse_is_told_in_words() -> None:
    healthy = {"h_std": 0.5 / math.sqrt(128), "h_effective_rank": 40.0, "holdout": 100}
    assert verdict(healthy, 128) is None
    assert "all images get the same" in verdict({**healthy, "h_std": 1e-4}, 128)
    assert "one direction" in verdict({**healthy, "h_effective_rank": 1.2}, 128)
