"""A parcel arrives as it was packed; on a GPU from pinned memory."""

from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from vergence.platform.augment.parcel import Parcel


class Thing(NamedTuple):
    rows: Tensor | None
    numbers: list[int]
    parts: dict[str, Tensor]


def thing() -> Thing:
    return Thing(torch.arange(5), [3, 4], {"a": torch.rand(2, 3).t(), "b": torch.tensor([True, False])})


def test_nothing_is_copied_on_a_cpu() -> None:
    parcel, given = Parcel(torch.device("cpu")), thing()
    taken, pixels = parcel.put(given), parcel.put_pixels(np.arange(4, dtype=np.uint8))
    parcel.send()
    assert taken() is given
    assert pixels().tolist() == [0, 1, 2, 3]


def test_it_arrives_as_it_was_packed_and_from_pinned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a GPU: what would be pinned and sent there stays here, and is noted."""
    pinned, sent, empty, to = [], [], torch.empty, Tensor.to

    def noted_empty(*args: Any, pin_memory: bool = False, **kwargs: Any) -> Tensor:
        pinned.append(pin_memory)
        return empty(*args, **kwargs)

    def noted_to(self: Tensor, device: Any, **kwargs: Any) -> Tensor:
        if getattr(device, "type", "") != "cuda":
            return to(self, device, **kwargs)
        sent.append(kwargs)
        return self.clone()

    monkeypatch.setattr(torch, "empty", noted_empty)
    monkeypatch.setattr(Tensor, "to", noted_to)
    parcel, given = Parcel(torch.device("cuda")), thing()
    frozen = np.frombuffer(bytes(range(7)), np.uint8)
    pixels, taken, nothing = parcel.put_pixels(frozen), parcel.put(given), parcel.put([Thing(None, [], {})])
    parcel.send()
    assert (pinned, sent) == ([True], [{"non_blocking": True}])
    assert pixels().tolist() == list(range(7))
    there = taken()
    assert there.rows is not None
    assert there.rows.tolist() == list(range(5))
    assert there.numbers == [3, 4]
    assert {name: (part.dtype, part.tolist()) for name, part in there.parts.items()} == {
        name: (part.dtype, part.tolist()) for name, part in given.parts.items()
    }
    assert nothing() == [Thing(None, [], {})]
