"""What is deleted from the folder of indexes, and what a living process keeps."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from shard_files import png, write_shard

from vergence.platform.data.index import Index, open_index
from vergence.platform.data.index_cache import DRAFT_LIFE_S, UNUSED_S

HOLD = """
import sys
from pathlib import Path
from vergence.platform.data.index import Index
index = Index(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
print(index.key(0), len(Index(index.path)), flush=True)
"""


@pytest.fixture
def shards(tmp_path: Path) -> Callable[..., str]:
    """Writes a set of shards anew, with as many samples as wanted; their pattern."""

    def write(num_samples: int, name: str = "train") -> str:
        picture = png(np.zeros((4, 4, 3), np.uint8))
        samples = [(f"k{i}", {"png": picture}) for i in range(num_samples)]
        return str(write_shard(tmp_path / f"{name}-000000.tar", samples))

    return write


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "index"


def age(path: Path, seconds: float) -> None:
    os.utime(path, (time.time() - seconds, time.time() - seconds))


def test_an_index_goes_when_one_of_the_same_shards_takes_its_place(
    shards: Callable[..., str], cache: Path
) -> None:
    other = open_index(shards(2, "other"), cache).path
    first = open_index(shards(3), cache).path
    second = open_index(shards(4), cache).path
    assert set(cache.iterdir()) == {other, second}
    assert not first.exists()


def holding(index: Path) -> subprocess.Popen[str]:
    """A process that has opened an index and reads from it once its input ends."""
    command = [sys.executable, "-c", HOLD, str(index)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_a_superseded_index_stays_as_long_as_a_process_lives_that_reads_it(
    shards: Callable[..., str], cache: Path
) -> None:
    first = open_index(shards(3), cache).path
    with holding(first) as reader, holding(first) as other:
        assert [process.stdout.readline() for process in (reader, other)] == ["held\n"] * 2
        open_index(shards(4), cache)
        assert first.exists()
        said, _ = reader.communicate("")
        assert said == "k0 3\n"
        other.kill()
        other.wait()
    open_index(shards(5), cache)
    assert not first.exists()


def test_an_index_that_nobody_has_used_for_a_month_goes(shards: Callable[..., str], cache: Path) -> None:
    patterns = [shards(2, name) for name in ("used", "unused")]
    used, unused = (open_index(pattern, cache).path for pattern in patterns)
    for path in (used, unused):
        age(path, UNUSED_S + 10)
    open_index(patterns[0], cache)
    open_index(shards(3), cache)
    assert used.exists()
    assert not unused.exists()


@pytest.mark.parametrize("left", [0, 0.5], ids=["empty", "half"])
def test_an_index_that_a_power_cut_has_damaged_is_made_again(
    shards: Callable[..., str], cache: Path, left: float
) -> None:
    pattern = shards(3)
    index = open_index(pattern, cache)
    other = open_index(shards(2, "other"), cache).path
    for path in (index.path, other):
        os.truncate(path, int(path.stat().st_size * left))
    again = open_index(pattern, cache)
    assert (again.path, again.digest, again.key(2)) == (index.path, index.digest, "k2")
    assert list(cache.iterdir()) == [index.path]


def test_drafts_that_were_left_long_ago_go(shards: Callable[..., str], cache: Path) -> None:
    first = open_index(shards(3), cache).path
    old, new = (first.with_name(f".{first.name}.{token}") for token in ("0a", "0b"))
    old.touch()
    new.touch()
    age(old, DRAFT_LIFE_S + 10)
    second = open_index(shards(4), cache).path
    assert set(cache.iterdir()) == {second, new}


def test_an_index_of_another_schema_is_made_again(shards: Callable[..., str], cache: Path) -> None:
    pattern = shards(3)
    path = open_index(pattern, cache).path
    table = pq.read_table(path)
    about = json.loads(table.schema.metadata[b"vergence"])
    for schema in (None, about["schema"] + 1):
        changed = {"vergence": json.dumps(about | {"schema": schema})}
        pq.write_table(table.replace_schema_metadata(changed), path)
        with pytest.raises(ValueError, match="another version"):
            Index(path)
        assert open_index(pattern, cache).key(2) == "k2"
