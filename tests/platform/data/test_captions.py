import json
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError
from shard_files import png, write_shard

from vergence.platform.augment.presets import ViewSpec
from vergence.platform.data.captions import Captions, captions_of
from vergence.platform.data.config import DataConfig
from vergence.platform.data.index import Index, open_index
from vergence.platform.data.plan import Plan
from vergence.platform.data.stream import Stream
from vergence.platform.errors import UserError

NUM, BATCH = 36, 12
TEMPLATES = ("a photo of a {class}.", "the {class}", "{class}, {class}!")
CAPTIONS = Captions(TEMPLATES, ("cat", "sea_horse"))


def index_of(folder: Path, classes: list[str | None], names: list[str] | None = None) -> Index:
    pixel = png(np.zeros((8, 8, 3), np.uint8))
    samples = [
        (f"{i:03d}", {"png": pixel} | ({} if cls is None else {"cls": cls.encode()}))
        for i, cls in enumerate(classes)
    ]
    shard = write_shard(folder / "a.tar", samples)
    if names is not None:
        (folder / "classes.json").write_text(json.dumps(names))
    return open_index(shard, folder / "index")


def test_a_caption_is_of_the_class_and_follows_from_seed_sample_and_epoch() -> None:
    ids, labels = np.arange(200), np.arange(200) % 2
    first = CAPTIONS.drawn(labels, ids, 0, seed=7)
    texts = [bytes(first[i : i + 1].flat).decode() for i in range(200)]
    of_class = [{t.replace("{class}", name) for t in TEMPLATES} for name in ("cat", "sea horse")]
    assert set(texts[::2]) == of_class[0]
    assert set(texts[1::2]) == of_class[1]
    back = CAPTIONS.drawn(labels[::-1], ids[::-1], np.zeros(200, np.int64), seed=7)
    assert [bytes(back[i : i + 1].flat).decode() for i in range(200)] == texts[::-1]
    for other in (CAPTIONS.drawn(labels, ids, 1, seed=7), CAPTIONS.drawn(labels, ids, 0, seed=8)):
        assert not np.array_equal(other.flat, first.flat)


def test_a_stream_carries_captions_as_it_would_carry_texts(tmp_path: Path) -> None:
    index = index_of(tmp_path, [("cat", "sea_horse")[i % 2] for i in range(NUM)])
    captions = captions_of(DataConfig(train="", captions=TEMPLATES), index)
    views = (ViewSpec(size=8),)
    stream = Stream(
        index.path, Plan(NUM, 0.0, 3, BATCH), 2, views, ("text",), 1 << 20, captions=captions
    ).measured()
    for step in (0, 4):
        share = stream.share(step, 1, 2)
        texts = [bytes(r[:n]).decode() for r, n in zip(share.fields["text"], share.fields["text.length"])]
        rows = CAPTIONS.drawn(share.ids % 2, share.ids, step // 3, seed=3)
        assert texts == [bytes(rows[i : i + 1].flat).decode() for i in range(len(share.ids))]


def test_names_stand_in_the_shards_or_beside_them(tmp_path: Path) -> None:
    config = DataConfig(train="x", captions=("a {class}",))
    words = index_of(tmp_path / "words", ["dog", "cat"])
    assert captions_of(config, words) == (config.captions, ("cat", "dog"))
    numbers = index_of(tmp_path / "numbers", ["1", "0"], names=["cat", "dog"])
    assert captions_of(config, numbers) == (config.captions, ("cat", "dog"))
    assert captions_of(DataConfig(train="x"), words) is None


@pytest.mark.parametrize(
    ("classes", "names", "why"),
    [
        (["1", None], ["a", "b"], "1 of 2 samples have no class"),
        ([None, None], None, "2 of 2 samples have no class"),
        (["1", "0"], None, "the classes of x have no names; write classes.json"),
        (["2", "0"], ["a", "b"], "the classes of x go up to 2, and classes.json names 2"),
    ],
)
def test_samples_whose_class_has_no_name_are_refused(
    tmp_path: Path, classes: list[str | None], names: list[str] | None, why: str
) -> None:
    with pytest.raises(UserError, match=why):
        captions_of(DataConfig(train="x", captions=("a {class}",)), index_of(tmp_path, classes, names))


def test_a_template_without_a_class_is_refused() -> None:
    with pytest.raises(
        ValidationError, match=r"a template has \{class\} where the name .* 'a photo' has none"
    ):
        DataConfig(train="x", captions=("a {class}", "a photo"))
