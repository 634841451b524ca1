"""Which classes of two sets are the same, and what is said of the others."""

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from shard_files import png, write_shard

from vergence.platform.errors import UserError
from vergence.platform.evaluate.labelled import Labelled, in_one_numbering, open_labelled

IMAGE = png(np.zeros((4, 4, 3), np.uint8))


def make(folder: Path, classes: Iterable[str | None], names: list[str] | None = None) -> Labelled:
    """A set with these classes, in a folder of its own; None: no class."""
    samples = [
        (f"{folder.name}{i}", {"png": IMAGE} | ({} if text is None else {"cls": text.encode()}))
        for i, text in enumerate(classes)
    ]
    write_shard(folder / "a.tar", samples)
    if names:
        (folder / "classes.json").write_text(json.dumps(names))
    return open_labelled(str(folder), folder / "index")


def test_samples_with_a_class_are_the_set(tmp_path: Path) -> None:
    found = make(tmp_path / "a", ["2", None, "0"], ["ant", "bee", "cat"])
    assert (found.ids.tolist(), found.labels.tolist()) == ([0, 2], [2, 0])
    assert found.names == ["ant", "bee", "cat"]
    with pytest.raises(UserError, match="have no labels"):
        make(tmp_path / "b", [None, None])
    with pytest.raises(UserError, match=r"holds class 2, its classes\.json names 2 classes"):
        make(tmp_path / "c", ["2"], ["ant", "bee"])


def test_one_name_is_one_class_whatever_its_numbers(tmp_path: Path) -> None:
    bank = make(tmp_path / "bank", ["0", "1", "2", "2"], ["ant", "bee", "cat"])
    words = make(tmp_path / "words", ["cat", "ant"])
    pair = in_one_numbering(bank, words)
    assert pair.test.labels.tolist() == [2, 0]
    assert pair.compared == "compared by name: the two sets number them otherwise"
    assert pair.apart == f"{words.pattern}: has no image of bee (1 image) of {bank.pattern}"
    assert in_one_numbering(bank, make(tmp_path / "all", ["0", "1", "2"], bank.names)).apart is None


def test_classes_that_only_the_test_set_has_are_refused_with_their_counts(tmp_path: Path) -> None:
    bank = make(tmp_path / "bank", ["ant", "bee"])
    test = make(tmp_path / "test", ["ant", "fox", "fox", "elk", "owl", "yak"])
    with pytest.raises(UserError, match=r"does not know: elk \(1 image\), fox \(2 images\), owl .*, \.\.\.;"):
        in_one_numbering(bank, test)
    with pytest.raises(UserError, match="the same shards"):
        in_one_numbering(bank, bank)


def test_numbers_without_names_compare_with_numbers_only(tmp_path: Path) -> None:
    numbers, named = make(tmp_path / "a", ["0", "1"]), make(tmp_path / "b", ["1", "0"], ["ant", "bee"])
    for pair in (in_one_numbering(numbers, named), in_one_numbering(named, numbers)):
        assert pair.compared == f"compared by number: only {named.pattern} has names for them (classes.json)"
    assert in_one_numbering(numbers, make(tmp_path / "c", ["1"])).compared == "compared by number"
    with pytest.raises(UserError, match=r"its classes are words \(ant, bee, ...\)"):
        in_one_numbering(numbers, make(tmp_path / "d", ["ant", "bee"]))
