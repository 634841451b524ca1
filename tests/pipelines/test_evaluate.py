"""`vergence evaluate`: knn-v1 against naive loops, the baselines, and what it refuses."""

import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
from shard_files import png, write_shard
from tiny_encoder import MEAN, STD, make_card, make_encoder

from vergence.pipelines import cli
from vergence.pipelines.evaluate import evaluate
from vergence.pipelines.recipe import initial_encoder, load_recipe
from vergence.platform.encoders.encoder import LoadedEncoder
from vergence.platform.encoders.export import export_encoder
from vergence.platform.encoders.load import load_encoder
from vergence.platform.errors import UserError
from vergence.platform.evaluate.report import Report

RECIPE = load_recipe("simclr-cifar10")
Work = tuple[Path, LoadedEncoder, str, str]


def draw(seed: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Noise with a weak tint of its class: images (count, 16, 16, 3) and labels."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, count)
    images = rng.integers(0, 200, (count, 16, 16, 3))
    images[np.arange(count), :, :, labels] += rng.integers(0, 12, (count, 1, 1))
    return images.astype(np.uint8), labels


TRAIN, TEST = draw(0, 80), draw(1, 60)


def write(path: Path, images: np.ndarray, labels: np.ndarray) -> str:
    samples = [
        (f"{i:04d}", {"png": png(image), "cls": str(label).encode()})
        for i, (image, label) in enumerate(zip(images, labels))
    ]
    return str(write_shard(path, samples))


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Work]:
    """(folder, encoder, train, test): an export that is the recipe's method as initialised by seed 0."""
    folder = tmp_path_factory.mktemp("work")
    card = make_card(recipe=RECIPE.dump())
    export_encoder(initial_encoder(RECIPE, 0), card, folder / "home" / "run" / "exports")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VERGENCE_HOME", str(folder / "home"))
        yield (
            folder,
            load_encoder("run"),
            write(folder / "train.tar", *TRAIN),
            write(folder / "test.tar", *TEST),
        )


def naive_top1(bank: np.ndarray, labels: np.ndarray, queries: np.ndarray, answers: np.ndarray) -> float:
    """knn-v1 in float64, as its definition reads."""
    unit = [row / math.sqrt(row @ row) for row in bank.astype(np.float64)]
    correct = 0
    for query, answer in zip(queries.astype(np.float64), answers):
        cosines = [float(query @ row) / math.sqrt(query @ query) for row in unit]
        votes = [0.0, 0.0, 0.0]
        for j in sorted(range(len(unit)), key=lambda j: (-cosines[j], j))[:20]:
            votes[labels[j]] += math.exp(cosines[j] / 0.1)
        correct += votes.index(max(votes)) == answer
    return correct / len(answers)


def test_figures_equal_the_naive_protocol(work: Work) -> None:
    _, encoder, train, test = work
    report = evaluate(encoder, train, test, seeds=2)
    results = {who: figures["knn-v1"] for who, figures in report.results.items()}
    expected = naive_top1(encoder(TRAIN[0]), TRAIN[1], encoder(TEST[0]), TEST[1])
    assert report.scores == {"knn-v1": expected}
    bank, queries = (((images / 255 - MEAN) / STD).reshape(len(images), -1) for images in (TRAIN[0], TEST[0]))
    pixels = naive_top1(bank, TRAIN[1], queries, TEST[1])
    assert results["raw pixels"].top1 == pixels
    initial = results["as initialised"]
    assert initial.seeds[0] == expected  # the exported encoder was never trained
    assert initial.top1 == np.mean(initial.seeds)
    assert (initial.min, initial.max) == (min(initial.seeds), max(initial.seeds))
    assert len({expected, pixels, initial.seeds[1]}) > 1  # figures that could be told apart


def test_several_protocols_and_encoders_in_one_table_with_their_words(
    work: Work, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _, train, test = work
    other = export_encoder(initial_encoder(RECIPE, seed=1), make_card(), folder / "other")
    command = ["evaluate", "run", str(other), "--train", train, "--test", test, "--protocol", "linear,knn"]
    assert cli.main([*command, "--json", str(folder / "two.json"), "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    reports = [
        Report.model_validate(each) for each in json.loads((folder / "two.json").read_text())["reports"]
    ]
    assert [report.encoder.name for report in reports] == ["run", str(other)]
    assert reports[0].encoder.digest != reports[1].encoder.digest
    for report in reports:
        assert list(report.scores) == ["linear-v1", "knn-v1"]
        (row,) = [line for line in out.splitlines() if report.encoder.name[:12] in line and "C " in line]
        cells = [f"{report.scores[version]:.4f}" for version in report.scores]
        assert [cell for cell in row.split() if cell in cells] == cells
    words = " ".join(out.split())
    for said in ("knn-v1: a test image gets", "linear-v1: logistic regression", "bank 80 images", "test 60"):
        assert said in words


def test_report_states_the_protocol(work: Work, capsys: pytest.CaptureFixture[str]) -> None:
    folder, _, train, test = work
    command = ["evaluate", "run", "--train", train, "--test", test, "--baselines", "--seeds", "1"]
    assert cli.main([*command, "--json", str(folder / "knn.json")]) == 0
    out = " ".join(capsys.readouterr().out.split())
    for words in (
        "knn-v1",
        "bank 80 images",
        "test 60",
        "k 20, T 0.1",
        "L2-normalised",
        "raw pixels",
        "as initialised",
    ):
        assert words in out
    report = Report.model_validate_json((folder / "knn.json").read_text())
    protocol = report.protocols["knn-v1"]
    assert (protocol["k"], protocol["temperature"]) == (20, 0.1)
    assert report.results["encoder"]["knn-v1"].settings == {"k": 20}
    assert report.data.bank is not None
    assert (report.data.bank.images, report.data.test.images) == (80, 60)
    assert f"{report.scores['knn-v1']:.4f}" in out


def test_without_baselines_there_is_the_encoder_alone(work: Work) -> None:
    *_, train, test = work
    assert list(evaluate("run", train, test).results) == ["encoder"]


def test_what_was_embedded_once_is_not_embedded_again(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    """By another protocol, and with the baselines: only what is new."""
    _, encoder, train, test = work
    first = evaluate(encoder, train, test)

    def fails(self: LoadedEncoder, images: object) -> None:
        raise AssertionError("embedded again")

    monkeypatch.setattr(LoadedEncoder, "__call__", fails)
    again = evaluate(encoder, train, test, protocols=["knn", "linear"], seeds=1)
    assert again.scores["knn-v1"] == first.scores["knn-v1"]


def test_unreadable_images_are_left_out_with_their_labels(work: Work, tmp_path: Path) -> None:
    _, encoder, train, _ = work
    images, labels = TEST
    samples = [(f"{i:04d}", {"png": png(images[i]), "cls": str(labels[i]).encode()}) for i in range(60)]
    samples[7] = ("0007", {"png": b"\x89PNG\r\n\x1a\n", "cls": b"2"})
    report = evaluate(encoder, train, str(write_shard(tmp_path / "test.tar", samples)))
    good = np.arange(60) != 7
    expected = naive_top1(encoder(TRAIN[0]), TRAIN[1], encoder(images[good]), labels[good])
    assert report.scores["knn-v1"] == expected
    assert report.data.test.unreadable == 1


def relabelled(
    path: Path, images: np.ndarray, texts: Iterable[object], names: list[str] | None = None
) -> str:
    """A folder with one shard of these images and classes, and perhaps a classes.json."""
    samples = [
        (f"{i:04d}", {"png": png(image)} | ({} if text is None else {"cls": str(text).encode()}))
        for i, (image, text) in enumerate(zip(images, texts))
    ]
    write_shard(path / "a.tar", samples)
    if names:
        (path / "classes.json").write_text(json.dumps(names))
    return str(path)


NAMES = ["ant", "bee", "cat"]


def test_labels_of_two_label_maps_are_compared_by_name(work: Work, tmp_path: Path) -> None:
    """The numbers were compared: right answers counted as wrong ones, without a word."""
    _, encoder, *_ = work
    right = evaluate(encoder, *work[2:]).scores["knn-v1"]
    train = relabelled(tmp_path / "train", *TRAIN, NAMES)
    same = relabelled(tmp_path / "same", *TEST, NAMES)
    turned = relabelled(tmp_path / "turned", TEST[0], [2 - label for label in TEST[1]], NAMES[::-1])
    words = relabelled(tmp_path / "words", TEST[0], [NAMES[label] for label in TEST[1]])
    for test, compared in (
        (same, "compared by name"),
        (turned, "compared by name: the two sets number them otherwise"),
        (words, "compared by name"),
    ):
        report = evaluate(encoder, train, test)
        assert report.scores["knn-v1"] == right
        assert report.data.classes == compared
    plain = relabelled(tmp_path / "plain", *TEST)
    report = evaluate(encoder, train, plain)
    assert report.scores["knn-v1"] == right
    assert report.data.classes == f"compared by number: only {train} has names for them (classes.json)"


def test_label_maps_that_cannot_be_compared_are_refused(work: Work, tmp_path: Path) -> None:
    _, encoder, train, test = work
    named = relabelled(tmp_path / "train", *TRAIN, NAMES)
    others = relabelled(tmp_path / "others", *TEST, ["ant", "bee", "fox"])
    count = int((TEST[1] == 2).sum())
    with pytest.raises(
        UserError, match=rf"others: has classes that .*train does not know: fox \({count} images\)"
    ):
        evaluate(encoder, named, others)
    words = relabelled(tmp_path / "words", TEST[0], [NAMES[label] for label in TEST[1]])
    for pair in ((train, words), (words, test)):
        with pytest.raises(UserError, match=r"words: its classes are words \(ant, bee, cat, ...\), those of"):
            evaluate(encoder, *pair)
    fewer = relabelled(tmp_path / "fewer", TEST[0], [min(label, 1) for label in TEST[1]], NAMES)
    count = int((TRAIN[1] == 2).sum())
    told = f"{fewer}: has no image of cat ({count} images) of {named}"
    assert evaluate(encoder, named, fewer).data.apart == told
    with pytest.raises(UserError, match=r"few: holds class 2, its classes\.json names 2 classes"):
        evaluate(encoder, train, relabelled(tmp_path / "few", *TEST, NAMES[:2]))


def test_images_without_a_class_are_left_out_and_counted(
    work: Work, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, encoder, train, _ = work
    texts = [None if i in (4, 9) else label for i, label in enumerate(TEST[1])]
    test = relabelled(tmp_path / "test", TEST[0], texts)
    report = evaluate(encoder, train, test)
    kept = np.array([text is not None for text in texts])
    expected = naive_top1(encoder(TRAIN[0]), TRAIN[1], encoder(TEST[0][kept]), TEST[1][kept])
    assert report.scores["knn-v1"] == expected
    about = report.data.test
    assert (about.images, about.unlabelled, about.unreadable) == (58, 2, 0)
    assert cli.main(["evaluate", "run", "--train", train, "--test", test]) == 0
    assert f"{test}: 2 of 60 samples have no class (.cls)" in capsys.readouterr().out


def test_what_cannot_be_evaluated_is_said_in_one_line(
    work: Work, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, encoder, train, test = work
    unlabelled = str(write_shard(tmp_path / "plain.tar", [("a", {"png": png(TEST[0][0])})]))
    with pytest.raises(UserError, match=r"plain\.tar: these shards have no labels"):
        evaluate(encoder, train, unlabelled)
    with pytest.raises(UserError, match="the same shards"):
        evaluate(encoder, train, train)
    lone = export_encoder(make_encoder(), make_card(), tmp_path / "lone")
    with pytest.raises(UserError, match="holds no recipe"):
        evaluate(load_encoder(str(lone)), train, test, seeds=1)
    (lone / "encoder.json").unlink()
    with pytest.raises(UserError, match=r"--baselines needs the card"):
        evaluate(load_encoder(str(lone)), train, test, seeds=1)
    assert cli.main(["evaluate", "ron", "--train", train, "--test", test]) == 2
    assert "did you mean run?" in capsys.readouterr().err
    assert cli.main(["evaluate", "run", "--train", train, "--test", str(folder / "none-*.tar")]) == 2
    assert "none-*.tar" in capsys.readouterr().err
    assert cli.main(["evaluate", "run", "--train", train, "--test", test, "--seeds", "0"]) == 2
    capsys.readouterr()
    for option, value, message in (
        ("--protocol", "knn,liner", "did you mean linear?"),
        ("--device", "cuda:99", "device cuda:99: this machine has"),
    ):
        assert cli.main(["evaluate", "run", "--train", train, "--test", test, option, value]) == 2
        said = capsys.readouterr().err
        assert message in said
        assert said.count("\n") == 1
    broken = [("a", {"png": b"", "cls": b"1"})]
    with pytest.raises(UserError, match=r"bad\.tar: none of its 1 images can be read"):
        evaluate(encoder, train, str(write_shard(tmp_path / "bad.tar", broken)))
