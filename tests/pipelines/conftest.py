"""What the tests of `pretrain` begin with."""

import json
from pathlib import Path

import pytest
from runs_for_real import TINY, write_shards


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with shards and a recipe."""
    folder = tmp_path_factory.mktemp("pretrain")
    shards = write_shards(folder / "shards")
    (folder / "tiny.yaml").write_text(TINY.replace("SHARDS", json.dumps(shards)))
    return folder
