"""Protocols of one shape: linear-v1 against scikit-learn on real images, and what neither may look at."""

import io
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from sklearn.linear_model import LogisticRegression

from vergence.platform.augment import rng
from vergence.platform.evaluate.definitions import LINEAR
from vergence.platform.evaluate.protocols import DRAW, PROTOCOLS, EvaluationProtocol, Examples, Knn, Linear

NUM_BANK, NUM_QUERIES = 800, 1000


@pytest.fixture(scope="module")
def cifar(shared: Path) -> tuple[Examples, Examples]:
    """Bank and queries: CIFAR-10 images as 8 x 8 pixels less their mean, (n, 192)."""
    rows, labels = [], []
    with pq.ParquetFile(shared / "data" / "cifar10" / "test-00000-of-00001.parquet") as file:
        batch = next(file.iter_batches(NUM_BANK + NUM_QUERIES)).to_pydict()
    for image, label in zip(batch["img"], batch["label"]):
        small = Image.open(io.BytesIO(image["bytes"])).resize((8, 8), Image.Resampling.BOX)
        rows.append(np.asarray(small, np.float32).reshape(-1) / 255 - 0.5)
        labels.append(label)
    x, y = np.stack(rows).astype(np.float32), np.array(labels, np.int64)
    return Examples(x[:NUM_BANK], y[:NUM_BANK]), Examples(x[NUM_BANK:], y[NUM_BANK:])


def unit(rows: np.ndarray) -> np.ndarray:
    rows = rows.astype(np.float64)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def sklearn_model(rows: np.ndarray, labels: np.ndarray, c: float) -> LogisticRegression:
    return LogisticRegression(C=c, tol=1e-5, max_iter=2000).fit(unit(rows), labels)


def test_linear_is_scikit_learns_logistic_regression(cifar: tuple[Examples, Examples]) -> None:
    """The whole protocol, its choice of C too, on the same features."""
    bank, queries = cifar
    ours = Linear().run(bank, queries)
    c = ours.settings["C"]
    theirs = sklearn_model(bank.rows, bank.labels, c).predict(unit(queries.rows))
    assert 0.25 < ours.top1 < 0.6
    assert abs(ours.top1 - (theirs == queries.labels).mean()) <= 0.003
    drawn = rng.permutation(NUM_BANK, DRAW)
    judges, others = drawn[: NUM_BANK // 10], drawn[NUM_BANK // 10 :]
    right = {}
    for each in LINEAR.fixed["C"][:7]:  # what overfits more is slow, and no better here
        model = sklearn_model(bank.rows[others], bank.labels[others], each)
        right[each] = (model.predict(unit(bank.rows[judges])) == bank.labels[judges]).sum()
    assert right[c] >= max(right.values()) - 1  # an image at a boundary
    assert len(set(right.values())) > 3  # figures that could be told apart


@pytest.mark.parametrize("protocol", PROTOCOLS.values(), ids=PROTOCOLS)
def test_a_protocol_is_deterministic_and_looks_at_the_answers_only_to_count(
    cifar: tuple[Examples, Examples], protocol: EvaluationProtocol
) -> None:
    bank, queries = (Examples(each.rows[:200, ::8], each.labels[:200]) for each in cifar)
    scores, again = protocol.run(bank, queries), protocol.run(bank, queries)
    assert scores.correct.dtype == bool
    assert (scores.correct == again.correct).all()
    assert scores.top1 == scores.correct.mean()
    turned = protocol.run(bank, Examples(queries.rows, 9 - queries.labels))
    assert turned.settings == scores.settings == again.settings
    predicted = np.where(scores.correct, queries.labels, -1)
    assert not (turned.correct & (predicted == queries.labels) & (queries.labels != 9 - queries.labels)).any()
    scaled = protocol.run(Examples(bank.rows * 4, bank.labels), queries)  # a power of two: exact
    assert (scaled.correct == scores.correct).all()


@pytest.mark.parametrize("protocol", PROTOCOLS.values(), ids=PROTOCOLS)
def test_numbers_of_classes_may_have_gaps_and_a_class_the_bank_lacks_is_never_right(
    cifar: tuple[Examples, Examples], protocol: EvaluationProtocol
) -> None:
    bank, queries = (Examples(each.rows[:300, ::8], each.labels[:300]) for each in cifar)
    expected = protocol.run(bank, queries).correct
    wide, sparse = (Examples(each.rows, each.labels * 1000 + 7) for each in (bank, queries))
    assert (protocol.run(wide, sparse).correct == expected).all()
    unknown = np.where(np.arange(300) < 50, 77, queries.labels)
    got = protocol.run(bank, Examples(queries.rows, unknown)).correct
    assert not got[:50].any()
    assert (got[50:] == expected[50:]).all()


def test_few_examples_choose_nothing() -> None:
    bank = Examples(np.eye(4, dtype=np.float32), np.arange(4))
    scores = Linear().run(bank, bank)
    assert scores.settings == {"C": 1.0}
    assert scores.correct.all()
    assert Knn().run(bank, bank).settings == {"k": 4}
    empty = Examples(np.zeros((0, 4), np.float32), np.zeros(0, np.int64))
    for protocol in PROTOCOLS.values():
        for pair in ((bank, empty), (empty, bank)):
            with pytest.raises(ValueError, match="both need one"):
                protocol.run(*pair)
