"""Protocols of one shape: linear-v1 against scikit-learn on real images, and what neither may look at."""

import io

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.linear_model import LogisticRegression

from vergence.platform.augment import rng
from vergence.platform.errors import UserError
from vergence.platform.evaluate.definitions import KNN, LINEAR, versions
from vergence.platform.evaluate.linear import fit, predict
from vergence.platform.evaluate.protocols import DRAW, PROTOCOLS, Examples, Knn, Linear

NUM_BANK, NUM_QUERIES = 800, 1000


@pytest.fixture(scope="module")
def cifar(shared):
    """Bank and queries: CIFAR-10 images as 8 x 8 pixels less their mean, (n, 192)."""
    rows, labels = [], []
    file = pq.ParquetFile(shared / "data" / "cifar10" / "test-00000-of-00001.parquet")
    batch = next(file.iter_batches(NUM_BANK + NUM_QUERIES)).to_pydict()
    for image, label in zip(batch["img"], batch["label"]):
        small = Image.open(io.BytesIO(image["bytes"])).resize((8, 8), Image.Resampling.BOX)
        rows.append(np.asarray(small, np.float32).reshape(-1) / 255 - 0.5)
        labels.append(label)
    x, y = np.stack(rows), np.array(labels, np.int64)
    return Examples(x[:NUM_BANK], y[:NUM_BANK]), Examples(x[NUM_BANK:], y[NUM_BANK:])


def unit(rows):
    rows = rows.astype(np.float64)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def sklearn_model(rows, labels, c, tol=1e-5):
    return LogisticRegression(C=c, tol=tol, max_iter=2000).fit(unit(rows), labels)


def test_linear_is_scikit_learns_logistic_regression(cifar):
    """The whole protocol, its choice of C too, on the same features."""
    bank, queries = cifar
    ours = Linear().run(bank, queries)
    drawn = rng.permutation(NUM_BANK, DRAW)
    judges, others = drawn[: NUM_BANK // 10], drawn[NUM_BANK // 10 :]
    right = {
        c: sklearn_model(bank.rows[others], bank.labels[others], c).score(
            unit(bank.rows[judges]), bank.labels[judges]
        )
        for c in LINEAR.fixed["C"]
    }
    best = max(right, key=lambda c: (right[c], -c))
    theirs = sklearn_model(bank.rows, bank.labels, best).predict(unit(queries.rows))
    assert ours.settings == {"C": best}
    assert len(set(right.values())) > 3  # figures that could be told apart
    assert 0.25 < ours.top1 < 0.6
    assert abs(ours.top1 - (theirs == queries.labels).mean()) <= 0.003


@pytest.mark.parametrize("c", [0.1, 10.0])
def test_fit_finds_the_minimum_of_the_stated_objective(cifar, c):
    bank, _ = cifar
    x, y = torch.from_numpy(unit(bank.rows)), torch.from_numpy(bank.labels)
    found = fit(x, y, 10, c, tolerance=1e-7)
    model = sklearn_model(bank.rows, bank.labels, c, tol=1e-7)
    np.testing.assert_allclose(found[:-1].T, model.coef_, atol=2e-3 * float(found.abs().max()))
    w = found.clone().requires_grad_()
    sums = F.cross_entropy(x @ w[:-1] + w[-1], y, reduction="sum") + (w[:-1] ** 2).sum() / (2 * c)
    (gradient,) = torch.autograd.grad(sums, w)
    assert float(gradient.abs().max()) / len(x) <= 1e-7


def test_the_minimum_does_not_depend_on_the_start_nor_on_the_chunk(cifar, monkeypatch):
    bank, _ = cifar
    x, y = torch.from_numpy(unit(bank.rows)), torch.from_numpy(bank.labels)
    found = fit(x, y, 10, 1.0, tolerance=1e-8)
    other = fit(x, y, 10, 1.0, tolerance=1e-8, start=torch.ones(193, 10).double().cumsum(0))
    torch.testing.assert_close(other[:-1], found[:-1], rtol=0, atol=1e-3)
    bias = other[-1] - other[-1].mean()  # what all classes share is free
    torch.testing.assert_close(bias, found[-1], rtol=0, atol=1e-3)
    monkeypatch.setattr("vergence.platform.evaluate.linear.CHUNK_BYTES", 8 * 10 * 97)
    torch.testing.assert_close(fit(x, y, 10, 1.0, tolerance=1e-8), found, rtol=0, atol=1e-3)
    assert torch.equal(predict(x, found), (x @ found[:-1] + found[-1]).argmax(dim=1))


@pytest.mark.parametrize("protocol", PROTOCOLS.values(), ids=PROTOCOLS)
def test_a_protocol_is_deterministic_and_looks_at_the_answers_only_to_count(cifar, protocol):
    bank, queries = (Examples(each.rows[:200], each.labels[:200]) for each in cifar)
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
def test_numbers_of_classes_may_have_gaps_and_a_class_the_bank_lacks_is_never_right(cifar, protocol):
    bank, queries = (Examples(each.rows[:300], each.labels[:300]) for each in cifar)
    expected = protocol.run(bank, queries).correct
    wide = [Examples(each.rows, each.labels * 1000 + 7) for each in (bank, queries)]
    assert (protocol.run(*wide).correct == expected).all()
    unknown = np.where(np.arange(300) < 50, 77, queries.labels)
    got = protocol.run(bank, Examples(queries.rows, unknown)).correct
    assert not got[:50].any()
    assert (got[50:] == expected[50:]).all()


def test_few_examples_choose_nothing():
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


def test_protocols_are_found_by_name_and_by_version():
    assert versions(["knn", "linear-v1", "knn-v1"]) == ["knn-v1", "linear-v1"]
    assert list(PROTOCOLS) == [KNN.version, LINEAR.version]
    with pytest.raises(UserError, match=r"'liner': there is no such one \(did you mean linear\?"):
        versions(["knn", "liner"])
