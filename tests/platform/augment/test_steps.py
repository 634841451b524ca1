"""All that is done to a view, prepared, sent as to a GPU and done there."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from vergence.platform.augment import draw, steps
from vergence.platform.augment.parcel import Parcel
from vergence.platform.augment.presets import PRESETS

SIZE, N = 16, 24
SETTINGS = PRESETS["infomin"][0]._replace(
    rotate=0.6, solarize=0.3, sobel=0.2, noise=0.5, cutout=0.5, rand_augment=4
)


def prepared() -> steps.Steps:
    drawn = draw.colours(SETTINGS, draw.Counter.of(0, np.arange(N), 0, 0))
    return steps.prepare(SETTINGS, drawn, SIZE)


def tensors(tree: Any) -> list[Tensor]:
    if isinstance(tree, Tensor):
        return [tree]
    return [each for part in tree for each in tensors(part)] if isinstance(tree, list | tuple) else []


def test_every_parameter_travels_and_the_view_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a GPU: what would be pinned and sent there stays here."""
    empty, to = torch.empty, Tensor.to

    def unpinned(*args: Any, pin_memory: bool = False, **kwargs: Any) -> Tensor:
        return empty(*args, **kwargs)

    def copied(self: Tensor, device: Any, *args: Any, **kwargs: Any) -> Tensor:
        there = getattr(device, "type", "") == "cuda"
        return self.clone() if there else to(self, device, *args, **kwargs)

    x, fill = torch.rand(N, 3, SIZE, SIZE), torch.tensor([0.5, 0.4, 0.3]).view(1, 3, 1, 1)
    here = prepared()
    expected = steps.done(x.clone(), here, fill)
    with monkeypatch.context() as patched:
        patched.setattr(torch, "empty", unpinned)
        patched.setattr(Tensor, "to", copied)
        parcel = Parcel(torch.device("cuda"))
        taken = parcel.put(prepared())
        parcel.send()
        there = taken()
    kept = {each.data_ptr() for each in tensors(here)}
    assert len(tensors(there)) == len(tensors(here)) > 40
    assert not any(each.data_ptr() in kept for each in tensors(there) if len(each))
    assert torch.equal(steps.done(x.clone(), there, fill), expected)
    changed = (expected != x).flatten(1).any(dim=1)
    assert changed.float().mean() > 0.9
