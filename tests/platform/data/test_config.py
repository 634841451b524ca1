"""The order that a recipe gets where it names none."""

import json
from typing import Any

import pytest

from vergence.platform.data.config import DataConfig


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        ({"train": "shards/*.tar"}, "full"),
        ({"train": "s3://bucket/shards"}, "chunk"),
        ({"train": "s3://bucket/shards", "order": {"chunk": 16}}, "chunk"),
        ({"train": "s3://bucket/shards", "order": {"kind": "full"}}, "full"),
        ({"train": "shards", "order": {"kind": "chunk"}}, "chunk"),
    ],
)
def test_shards_in_a_store_come_in_chunks_unless_one_says_otherwise(given: dict[str, Any], kind: str) -> None:
    data = DataConfig.model_validate_json(json.dumps({**given, "mean": [0.5, 0.5, 0.5]}))
    assert data.order.kind == kind
    assert DataConfig.model_validate_json(data.model_dump_json()) == data
    if "order" in given:
        assert data.order.chunk == given["order"].get("chunk", 64)
