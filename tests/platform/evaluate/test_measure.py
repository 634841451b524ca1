"""Several encoders on the same samples: each as it would be alone, answers in one order."""

import numpy as np
import pytest
from shard_files import png, write_shard
from tiny_encoder import MEAN, STD, make_encoder

from vergence.platform.encoders.encoder import Embedder, ModuleEncoder
from vergence.platform.evaluate.knn import knn_predict
from vergence.platform.evaluate.labelled import Pair, in_one_numbering, open_labelled
from vergence.platform.evaluate.measure import Baseline, evaluate, measure
from vergence.platform.evaluate.pixels import Pixels
from vergence.platform.evaluate.protocols import PROTOCOLS

RNG = np.random.default_rng(0)
IMAGES, LABELS = RNG.integers(0, 200, (60, 16, 16, 3), dtype=np.uint8), RNG.integers(0, 3, 60)
IMAGES[np.arange(60), :, :, LABELS] += 20
BAD = 47
PROTOCOL = [PROTOCOLS["knn-v1"]]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder = tmp_path_factory.mktemp("shards")
    sets = []
    for name, part in (("train", range(35)), ("test", range(35, 60))):
        samples = [
            (f"{i:02d}", {"png": b"" if i == BAD else png(IMAGES[i]), "cls": b"%d" % LABELS[i]}) for i in part
        ]
        sets.append(open_labelled(str(write_shard(folder / f"{name}.tar", samples)), folder / "index"))
    return in_one_numbering(*sets)


def of(size: int) -> ModuleEncoder:
    return ModuleEncoder.of(make_encoder(), f"tiny {size}", size=size, mean=MEAN, std=STD)


def test_encoders_of_other_sizes_answer_for_the_same_images_in_the_same_order(pair: Pair) -> None:
    encoders: list[Embedder] = [of(16), Pixels(16, MEAN, STD), of(8)]
    together = measure(encoders, pair, PROTOCOL, threads=1)
    good = [i for i in range(35, 60) if i != BAD]
    assert together.bank is not None
    assert (together.bank.images, together.test.images, together.test.unreadable) == (35, 24, 1)
    for encoder, scores in zip(encoders, together.scores):
        (alone,) = measure([encoder], pair, PROTOCOL, threads=1).scores
        assert (alone["knn-v1"].correct == scores["knn-v1"].correct).all()
    bank, queries = encoders[0](IMAGES[:35]), encoders[0](IMAGES[good])
    expected = knn_predict(bank, LABELS[:35], queries, k=20, temperature=0.1).numpy() == LABELS[good]
    assert (together.scores[0]["knn-v1"].correct == expected).all()
    assert 0 < expected.mean() < 1


def test_a_report_has_the_figures_of_each_by_its_name(pair: Pair) -> None:
    baselines = {
        "pixels": Baseline("as they are", Pixels(16, MEAN, STD)),
        "fresh": Baseline("two", [of(16), of(16)]),
    }
    report = evaluate(of(16), pair, PROTOCOL, baselines=baselines, threads=1)
    figures = {who: figure["knn-v1"] for who, figure in report.results.items()}
    assert [figure.seeds is None for figure in figures.values()] == [True, True, False]
    assert figures["fresh"].seeds == (report.scores["knn-v1"],) * 2
    assert report.baselines == {"pixels": "as they are", "fresh": "two"}
    assert (report.encoder.size, report.encoder.dim) == (16, 128)
    assert report.data.bank is not None
    assert pair.bank is not None
    assert (report.data.bank.shards, report.data.bank.digest) == (pair.bank.pattern, pair.bank.index.digest)
    assert report.data.names is None
