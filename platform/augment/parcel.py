"""What a micro-batch takes along to a device: pixels and all parameters in one pinned, non-blocking copy."""

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

ALIGNMENT = 16  # bytes: any type can be viewed there

T = TypeVar("T")


class Parcel:
    """First everything is put in, then it is sent, then it is taken out on the device.

    Nothing is copied on a CPU, and nothing waits for the device elsewhere.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._here = device.type == "cpu"
        self._items: list[tuple[NDArray[np.uint8], torch.dtype, torch.Size]] = []
        self._sent: list[Tensor] = []

    def put(self, tree: T) -> Callable[[], T]:
        """A NamedTuple or list of CPU tensors, one in another; called after `send`, the same on the device."""
        if self._here:
            return lambda: tree
        placed = _map(tree, self._add)
        return lambda: _map(placed, lambda item: self._sent[item.number])

    def put_pixels(self, pixels: NDArray[np.uint8]) -> Callable[[], Tensor]:
        """(k,) uint8, perhaps read-only."""
        if self._here:  # torch wants to be able to write
            return lambda: torch.from_numpy(np.require(pixels, requirements="W"))
        item = self._append(pixels, torch.uint8, torch.Size(pixels.shape))
        return lambda: self._sent[item.number]

    def send(self) -> None:
        """Start the copy; once."""
        if self._here or not self._items:
            return
        starts = np.cumsum(
            [0, *(-(-len(data) // ALIGNMENT) * ALIGNMENT for data, _, _ in self._items)]
        ).tolist()
        parcel = torch.empty(starts[-1], dtype=torch.uint8, pin_memory=self.device.type == "cuda")
        for start, (data, _, _) in zip(starts, self._items):
            parcel.numpy()[start : start + len(data)] = data
        there = parcel.to(self.device, non_blocking=True)
        self._sent = [
            there[start : start + len(data)].view(dtype).view(shape)
            for start, (data, dtype, shape) in zip(starts, self._items)
        ]

    def _add(self, tensor: Tensor) -> "_Item":
        data = np.ascontiguousarray(tensor.numpy()).reshape(-1).view(np.uint8)
        return self._append(data, tensor.dtype, tensor.shape)

    def _append(self, data: NDArray[np.uint8], dtype: torch.dtype, shape: torch.Size) -> "_Item":
        self._items.append((data, dtype, shape))
        return _Item(len(self._items) - 1)


class _Item:
    """The place of a tensor in a parcel."""

    def __init__(self, number: int) -> None:
        self.number = number


def _map(tree: Any, change: Callable[[Any], Any]) -> Any:
    """The tree with every tensor (or place of one) changed, all else as it is."""
    if isinstance(tree, Tensor | _Item):
        return change(tree)
    if isinstance(tree, list):
        return [_map(each, change) for each in tree]
    if isinstance(tree, dict):
        return {name: _map(each, change) for name, each in tree.items()}
    return type(tree)(*(_map(each, change) for each in tree)) if isinstance(tree, tuple) else tree
