"""Pairs of bytes learned from captions: what is learned, that it is always the same, and where it is kept."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from shard_files import png, write_shard

from vergence.platform.data.captions import Captions, in_bytes
from vergence.platform.data.config import DataConfig
from vergence.platform.data.index import Index, open_index
from vergence.platform.data.ragged import Ragged
from vergence.platform.data.vocabulary import Vocabulary, kept_vocabulary, learned, vocabulary_of
from vergence.platform.errors import UserError

TEXTS = ["a photo of a cat", "a photo of a dog", "photo of a cat and a dog", "das Übermaß", "ein Übermut"] * 3


def words(vocabulary: Vocabulary) -> dict[str, int]:
    known: dict[str, int] = json.loads(vocabulary.json)["model"]["vocab"]
    return known


def spelled(vocabulary: Vocabulary, rows: Ragged) -> list[str]:
    """What tokens stand for, by tokenizers' own decoder."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(vocabulary.json)
    return [tokenizer.decode(row.tolist()) for row in np.split(rows.flat, np.cumsum(rows.lengths)[:-1])]


def test_frequent_pairs_become_one_token_and_what_was_never_seen_is_still_said() -> None:
    vocabulary = learned(TEXTS, 300)
    tokens = vocabulary.encode(in_bytes(["A photo of a cat", "", "snow 雪 \U0001f408", "a cat"]))
    assert tokens.values.dtype == np.int32
    assert tokens.lengths[0] == 5  # a word each
    assert tokens.lengths[1] == 0
    assert tokens.values.max() < 300
    assert spelled(vocabulary, tokens) == ["a photo of a cat", "", "snow 雪 \U0001f408", "a cat"]
    assert tokens.flat[tokens.offsets[1] - 1] == tokens.flat[-1]  # "cat" is "cat" wherever it stands


def test_the_first_pair_is_the_most_frequent_one() -> None:
    assert json.loads(learned(["abab abab", "abc"], 257).json)["model"]["merges"] == [["a", "b"]]


def test_all_256_bytes_are_there_and_a_small_set_has_no_more_pairs_than_it_can_teach() -> None:
    assert len(words(learned(["ab"], 256))) == 256
    assert len(words(learned(["ab"], 5000))) == 257


def test_the_same_captions_teach_the_same_on_any_number_of_threads() -> None:
    program = "import json, sys; from vergence.platform.data.vocabulary import learned as of; "
    program += "print(of(json.loads(sys.argv[1]), 300).digest)"
    found = set()
    for threads in ("1", "4"):
        environment = {"RAYON_NUM_THREADS": threads, "PYTHONPATH": ":".join(sys.path)}
        command = [sys.executable, "-c", program, json.dumps(TEXTS)]
        found.add(subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout)
    assert found == {learned(TEXTS, 300).digest + "\n"}


def captioned(folder: Path, **members: bytes) -> Index:
    folder.mkdir(parents=True, exist_ok=True)
    pixels = np.zeros((8, 8, 3), np.uint8)
    write_shard(folder / "t-000000.tar", [(f"{i}", {"png": png(pixels + i), **members}) for i in range(4)])
    return open_index(folder / "t-*.tar", folder / "index")


def test_it_is_learned_from_the_samples_own_texts_and_kept_beside_the_index(tmp_path: Path) -> None:
    index = captioned(tmp_path, txt=b"a photo of a cat")
    config = DataConfig(train="t-*.tar", vocabulary=280)
    vocabulary = vocabulary_of(config, index, None)
    assert vocabulary == learned(["a photo of a cat"] * 4, 280)
    assert kept_vocabulary(tmp_path / "index", index.digest, config) == vocabulary
    assert kept_vocabulary(tmp_path / "index", index.digest, DataConfig(train="t", vocabulary=281)) is None
    (file,) = (tmp_path / "index").glob("*.vocabulary.json")
    file.write_text(file.read_text()[:100])  # as a power cut leaves it
    assert vocabulary_of(config, index, None) == vocabulary


def test_it_is_learned_from_every_template_of_every_class(tmp_path: Path) -> None:
    index = captioned(tmp_path, cls=b"cat")
    captions = Captions(("a photo of a {class}", "one {class}"), ("cat", "polar_bear"))
    config = DataConfig(train="t-*.tar", vocabulary=280, captions=captions.templates)
    expected = learned(["a photo of a cat", "one cat", "a photo of a polar bear", "one polar bear"], 280)
    assert vocabulary_of(config, index, captions) == expected


def test_bytes_need_no_vocabulary(tmp_path: Path) -> None:
    assert vocabulary_of(DataConfig(train="t-*.tar"), captioned(tmp_path, txt=b"a"), None) is None


def test_without_tokenizers_the_cure_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(
        UserError, match=r"data.vocabulary=300: .*pip install 'vergence\[text\]'; 256, the bytes"
    ):
        learned(["a"], 300)
