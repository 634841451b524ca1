"""A sweep: which samples come, on which rank, and what the encoder is while it embeds them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from ranks import run_ranks
from shard_files import png, write_shard
from torch import Tensor, nn

from vergence.platform.data.index import open_index
from vergence.platform.evaluate import sweep as module
from vergence.platform.evaluate.sweep import Sweep

NUM, BAD = 23, (4, 17)
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of one colour, (i, 2i, 3i) for sample i; two of them are damaged."""
    folder = tmp_path_factory.mktemp("sweep")
    images = [png(np.full((6, 8, 3), (i, 2 * i, 3 * i), np.uint8)) for i in range(NUM)]
    write_shard(folder / "a.tar", [(f"{i:02d}", {"png": b"" if i in BAD else images[i]}) for i in range(NUM)])
    return folder


def make(folder: Path, ids: Sequence[int] | np.ndarray = range(NUM), keep: bool = False) -> Sweep:
    return Sweep(
        open_index(folder / "a.tar", folder / "index"),
        np.array(ids),
        size=4,
        mean=MEAN,
        std=STD,
        device=torch.device("cpu"),
        threads=2,
        keep=keep,
    )


class Mean(nn.Module):
    """(n, 3, H, W) -> (n, 3); remembers the mode of its parts and whether gradients were on."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen, self.learning = nn.Identity().eval(), nn.Identity()
        self.weight = nn.Parameter(torch.ones(()))

    def modes(self) -> list[bool]:
        return [part.training for part in (self, self.frozen, self.learning)]

    def forward(self, x: Tensor) -> Tensor:
        self.seen = (self.modes(), torch.is_grad_enabled(), x.dtype, tuple(x.shape[1:]))
        return x.mean((2, 3)) * self.weight


def expected(ids: Sequence[int] | np.ndarray) -> np.ndarray:
    return (np.outer(ids, [1, 2, 3]) / 255 - MEAN) / STD


@pytest.mark.parametrize("keep", [False, True])
def test_every_readable_sample_comes_once_in_each_pass(
    folder: Path, keep: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BATCH", 5)
    ids = np.random.default_rng(0).permutation(NUM)
    sweep, good = make(folder, ids, keep), ids[~np.isin(ids, BAD)]
    for _ in range(2):
        batches = list(sweep(Mean()))
        assert torch.cat([some for some, _ in batches]).tolist() == good.tolist()
        rows = torch.cat([h for _, h in batches])
        np.testing.assert_allclose(rows, expected(good), atol=1e-5)
        assert max(len(some) for some, _ in batches) <= 5
        assert sweep.num_bad == len(BAD)


def _ids(rank: int, world_size: int, folder: Path) -> tuple[list[int], int]:
    sweep = make(folder)
    return [int(i) for ids, _ in sweep(Mean()) for i in ids], sweep.num_bad


def test_ranks_share_the_samples(folder: Path) -> None:
    parts = run_ranks(_ids, 3, folder)
    assert sorted(i for ids, _ in parts for i in ids) == [i for i in range(NUM) if i not in BAD]
    assert sum(num_bad for _, num_bad in parts) == len(BAD)
    assert max(len(ids) for ids, _ in parts) <= -(-NUM // 3)


def test_each_part_is_in_eval_mode_for_a_batch_and_in_its_own_between(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BATCH", 8)
    encoder = Mean().train()
    encoder.frozen.eval()
    for _, h in make(folder)(encoder):
        assert encoder.seen == ([False] * 3, False, torch.float32, (3, 4, 4))
        assert encoder.modes() == [True, False, True]
        assert torch.is_grad_enabled()
        assert not h.requires_grad


def test_an_encoder_that_fails_is_left_in_its_own_mode(folder: Path) -> None:
    class Fails(Mean):
        def forward(self, x: Tensor) -> None:
            raise ArithmeticError

    encoder = Fails()
    with pytest.raises(ArithmeticError):
        next(make(folder)(encoder))
    assert encoder.training


def test_no_samples_are_no_batches(folder: Path) -> None:
    assert list(make(folder, np.empty(0, np.int64))(Mean())) == []
    assert list(make(folder, BAD, keep=True)(Mean())) == []
