"""Pairs of bytes learned from captions: what is learned, from which texts, and that it is always the same."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from shard_files import png, write_shard

from vergence.platform.data import vocabulary
from vergence.platform.data.captions import Captions, in_bytes
from vergence.platform.data.index import open_index
from vergence.platform.data.plan import Plan
from vergence.platform.data.ragged import Ragged
from vergence.platform.data.read import Reader
from vergence.platform.data.vocabulary import Vocabulary, learned, of_captions, of_samples
from vergence.platform.errors import UserError

TEXTS = ["a photo of a cat", "a photo of a dog", "photo of a cat and a dog", "das Übermaß", "ein Übermut"] * 3


def words(known: Vocabulary) -> dict[str, int]:
    """Token -> number; a space before a word is written as Ġ."""
    found: dict[str, int] = json.loads(known.json)["model"]["vocab"]
    return found


def spelled(known: Vocabulary, rows: Ragged) -> list[str]:
    """What tokens stand for, by tokenizers' own decoder."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(known.json)
    return [tokenizer.decode(row.tolist()) for row in np.split(rows.flat, np.cumsum(rows.lengths)[:-1])]


def test_frequent_pairs_become_one_token_and_what_was_never_seen_is_still_said() -> None:
    known = learned(TEXTS, 300)
    tokens = known.encode(in_bytes(["A photo of a cat", "", "snow 雪 \U0001f408", "a cat"]))
    assert tokens.values.dtype == np.int32
    assert tokens.lengths[0] == 5  # a word each
    assert tokens.lengths[1] == 0
    assert tokens.values.max() < 300
    assert spelled(known, tokens) == ["a photo of a cat", "", "snow 雪 \U0001f408", "a cat"]
    assert tokens.flat[tokens.offsets[1] - 1] == tokens.flat[-1]  # "cat" is "cat" wherever it stands


def test_the_first_pair_is_the_most_frequent_one() -> None:
    assert json.loads(learned(["abab abab", "abc"], 257).json)["model"]["merges"] == [["a", "b"]]


def test_all_256_bytes_are_there_and_a_small_set_has_no_more_pairs_than_it_can_teach() -> None:
    assert len(words(learned(["ab"], 256))) == learned(["ab"], 256).size == 256
    assert learned(["ab"], 5000).size == 257


def test_the_same_captions_teach_the_same_on_any_number_of_threads() -> None:
    program = "import json, sys; from vergence.platform.data.vocabulary import learned as of; "
    program += "print(of(json.loads(sys.argv[1]), 300).json)"
    found = set()
    for threads in ("1", "4"):
        environment = {"RAYON_NUM_THREADS": threads, "PYTHONPATH": ":".join(sys.path)}
        command = [sys.executable, "-c", program, json.dumps(TEXTS)]
        found.add(subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout)
    assert found == {learned(TEXTS, 300).json + "\n"}


def texts_of(folder: Path, *texts: bytes) -> tuple[Reader, Plan]:
    folder.mkdir(parents=True, exist_ok=True)
    pixels = np.zeros((8, 8, 3), np.uint8)
    samples = [(f"{i:05d}", {"png": png(pixels), "txt": text}) for i, text in enumerate(texts)]
    write_shard(folder / "t-000000.tar", samples)
    return Reader(open_index(folder / "t-*.tar", folder / "index")), Plan(len(texts), 0.25, 0, 1)


def test_it_is_learned_from_what_can_be_read_of_the_training_samples(tmp_path: Path) -> None:
    texts = [b"a photo of a cat %d" % i for i in range(16)]
    texts[3] = b"no \xff UTF-8"
    reader, plan = texts_of(tmp_path, *texts)
    known = [texts[i].decode() for i in plan.training_ids(np.arange(plan.num_training)) if i != 3]
    assert len(known) in (11, 12)  # a quarter is held out
    assert of_samples(reader, plan, 280) == learned(known, 280)


def test_what_is_read_lies_all_over_the_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """32 of 320 texts, eight in a row each time; the last word of the set is among them."""
    monkeypatch.setattr(vocabulary, "TEXTS", 32)
    monkeypatch.setattr(vocabulary, "NEIGHBOURS", 8)
    reader, _ = texts_of(tmp_path, *([b"cat"] * 240 + [b"dog"] * 80))
    taught = words(of_samples(reader, Plan(320, 0, 0, 1), 300))
    assert {"cat", "dog"} <= taught.keys()


def test_the_end_of_a_long_text_teaches_nothing(tmp_path: Path) -> None:
    reader, _ = texts_of(tmp_path, b"\xc3\xa9" * 3000 + b" dog" * 10)
    assert "dog" not in words(of_samples(reader, Plan(1, 0, 0, 1), 300))


def test_it_is_learned_from_every_template_of_every_class() -> None:
    captions = Captions(("a photo of a {class}", "one {class}"), ("cat", "polar_bear"))
    texts = ["a photo of a cat", "one cat", "a photo of a polar bear", "one polar bear"]
    assert of_captions(captions, 280) == learned(texts, 280)


def test_a_commit_carries_it() -> None:
    known = learned(TEXTS, 300)
    assert Vocabulary.of({"step": 3, "vocabulary": known.json}) == known
    assert Vocabulary.of({"step": 3}) is None


def test_without_tokenizers_the_cure_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    known = learned(["a photo"], 290)
    vocabulary._tokenizer.cache_clear()
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    for use in (lambda: learned(["a"], 300), lambda: known.encode(in_bytes(["a"]))):
        with pytest.raises(UserError, match=r"pip install 'vergence\[text\]'; 256, bytes alone"):
            use()
