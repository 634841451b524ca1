"""A search of three trials over few images, one of which dies."""

import json
from pathlib import Path
from typing import Any

from runs_for_real import TINY, write_shards

from vergence.platform import yaml

SEARCH: dict[str, Any] = {
    # 4096 is more than there are images: that trial dies
    "space": {"batch.global": {"choice": [64, 32, 4096]}},
    "scheduler": {"name": "halving", "first": 1, "factor": 2},
    "budget": {"epochs": 2, "concurrent": 2},
}


ONE_WORKER = ("scale.workers=1", "epochs=3")


def write_search(folder: Path) -> None:
    """Shards, the recipe tiny.yaml and the search s.yaml in a folder."""
    shards = write_shards(folder / "shards")
    (folder / "tiny.yaml").write_text(TINY.replace("SHARDS", json.dumps(shards)))
    (folder / "s.yaml").write_text(yaml.dump(SEARCH))
