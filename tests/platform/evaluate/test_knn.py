"""kNN against a naive float64 loop."""

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from vergence.platform.evaluate import knn
from vergence.platform.evaluate.knn import knn_predict


def naive(
    bank: np.ndarray,
    labels: np.ndarray,
    queries: np.ndarray,
    k: int,
    temperature: float,
    num_classes: int,
    exclude_self: bool = False,
) -> list[int]:
    """The definition in float64, one query and one neighbour at a time."""
    unit = lambda v: v / math.sqrt(sum(x * x for x in v))  # noqa: E731
    rows = [unit(row.astype(np.float64)) for row in bank]
    predictions = []
    for q, query in enumerate(unit(row.astype(np.float64)) for row in queries):
        ranked = sorted(
            (-float(query @ row), j) for j, row in enumerate(rows) if not (exclude_self and j == q)
        )
        votes = [0.0] * num_classes
        for negative, j in ranked[:k]:
            votes[labels[j]] += math.exp(-negative / temperature)
        predictions.append(votes.index(max(votes)))
    return predictions


@pytest.mark.parametrize("exclude_self", [False, True])
def test_predictions_equal_the_naive_definition_in_any_chunking(
    monkeypatch: pytest.MonkeyPatch, exclude_self: bool
) -> None:
    rng = np.random.default_rng(0)
    bank, labels = rng.normal(size=(90, 5)).astype(np.float32), rng.integers(0, 4, 90)
    queries = bank if exclude_self else rng.normal(size=(50, 5)).astype(np.float32) * 7
    expected = naive(bank, labels, queries, 20, 0.1, 4, exclude_self)
    for chunk_bytes in (8 * 90 * 7, 64_000_000):
        monkeypatch.setattr(knn, "CHUNK_BYTES", chunk_bytes)
        got = knn_predict(bank, labels, queries, k=20, temperature=0.1, exclude_self=exclude_self)
        assert got.dtype == torch.int64
        assert got.tolist() == expected


def test_equal_similarities_go_to_the_lower_row() -> None:
    bank = torch.ones(300, 2)  # all tied
    labels = torch.full((300,), 1)
    labels[:3] = 0
    query = torch.ones(1, 2)
    assert knn_predict(bank, labels, query, k=5, temperature=0.1).item() == 0  # 3 against 2
    assert knn_predict(bank, labels.flip(0), query, k=5, temperature=0.1).item() == 1


@pytest.mark.parametrize("n", [5, 6, 9, 11, 30, 101])
@pytest.mark.parametrize("num_queries", [1, 2, 3, 7])
def test_copies_of_a_row_tie_whatever_the_shapes(n: int, num_queries: int) -> None:
    """A float32 product gives equal rows similarities an ulp apart, by where they stand and how many there are."""
    rng = np.random.default_rng(n)
    for d in (8, 64, 500):
        for _ in range(4):
            copies = np.sort(rng.choice(n, 4, replace=False))
            bank = rng.normal(size=(n, d)).astype(np.float32)
            bank[copies] = bank[copies[0]] * np.array([[1], [1], [2], [0.5]], np.float32)
            queries = bank[copies[0]] + 0.01 * rng.normal(size=(num_queries, d)).astype(np.float32)
            for k, expected in ((1, copies[0]), (3, copies[0])):  # three votes of one weight: the lower class
                got = knn_predict(bank, np.arange(n), queries, k=k, temperature=0.1)
                assert got.tolist() == [expected] * num_queries


def test_similarities_do_not_depend_on_the_chunk_nor_on_the_order_of_summation() -> None:
    rng = np.random.default_rng(2)
    bank, queries = rng.normal(size=(2, 60, 300))
    some = knn._on_grid(torch.tensor(queries)) @ knn._on_grid(torch.tensor(bank)).T
    order = rng.permutation(300)
    for row in range(60):
        alone = knn._on_grid(torch.tensor(queries[row : row + 1])) @ knn._on_grid(torch.tensor(bank)).T
        assert torch.equal(alone, some[row : row + 1])
    grid = knn._on_grid(torch.tensor(queries))[:, order] @ knn._on_grid(torch.tensor(bank))[:, order].T
    assert torch.equal(grid, some)
    torch.testing.assert_close(
        some, F.normalize(torch.tensor(queries)) @ F.normalize(torch.tensor(bank)).T, rtol=0, atol=1e-7
    )


def test_equal_votes_go_to_the_lower_class() -> None:
    labels = torch.tensor([2, 1])
    assert knn_predict(torch.ones(2, 2), labels, torch.ones(1, 2), k=2, temperature=0.1).item() == 1


def test_k_is_cut_to_the_bank_and_a_lone_row_has_no_other() -> None:
    bank, labels = torch.eye(2), torch.tensor([0, 1])
    options: dict[str, Any] = {"k": 20, "temperature": 0.1}
    assert knn_predict(bank, labels, bank, **options).tolist() == [0, 1]
    assert knn_predict(bank, labels, bank, exclude_self=True, **options).tolist() == [1, 0]
    with pytest.raises(ValueError, match="needs a neighbour"):
        knn_predict(bank[:1], labels[:1], bank[:1], exclude_self=True, **options)


def test_products_stay_exact_where_training_chose_bfloat16() -> None:
    rng = np.random.default_rng(1)
    bank = np.float32(rng.normal(size=64) + 0.02 * rng.normal(size=(200, 64)))  # cosines 4e-4 below 1
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", torch.bfloat16):
            got = knn_predict(bank, np.arange(200), bank, k=1, temperature=0.1)
    finally:
        torch.set_float32_matmul_precision("highest")
    assert got.tolist() == list(range(200))  # bf16 keeps 3 digits: it would find others
