"""A search of three trials over few images, one of which dies."""

from typing import Any

SEARCH: dict[str, Any] = {
    # 4096 is more than there are images: that trial dies
    "space": {"batch.global": {"choice": [64, 32, 4096]}},
    "scheduler": {"name": "halving", "first": 1, "factor": 2},
    "budget": {"epochs": 2, "concurrent": 2},
}
ONE_WORKER = ("scale.workers=1", "epochs=3")
