"""Norm groups of one image again and again (blank frames): which they are, and that they give no gradient.

What comes after a group without variance is rounding errors that batch norm has blown up, and so would be their
gradient. All layers of a forward are judged at once, when the backward first asks: on a GPU two small sums are all that
a layer costs.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

# Rows of a group that agree to a thousandth of their size, where the usual spread is over 30 times theirs, are
# one image again and again: in variances.
ALIKE, UNUSUAL = 1e-6, 1e-3


class Seen:
    """The groups of one forward as its norm layers saw them, in the order in which they ran.

    usual: asked once, for the layers that have run.
    """

    def __init__(self, usual: "Usual") -> None:
        self._usual = usual
        self._layers: list[int] = []
        self._spreads: list[Tensor] = []
        self._sizes: list[Tensor] = []

    def note(self, layer: int, means: Tensor, variances: Tensor) -> int:
        """Statistics (G, C) of the groups in a layer; its place in the forward."""
        self._layers.append(layer)
        self._spreads.append(variances.sum(1))
        self._sizes.append(means.square().sum(1))
        return len(self._layers) - 1

    @cached_property
    def passes(self) -> Tensor:
        """(places, G) bool: groups that gradient passes there: alike neither at this place nor before it."""
        spreads, sizes = torch.stack(self._spreads), torch.stack(self._sizes)
        usual = self._usual(self._layers, spreads.device)
        alike = (spreads <= ALIKE * sizes) & (spreads < UNUSUAL * usual[:, None])
        return alike.cumsum(0) == 0

    @property
    def alike(self) -> Tensor | None:
        """(G,) bool: groups without a gradient somewhere; None if no layer has run."""
        return ~self.passes[-1] if self._layers else None


class Usual:
    """What the rows of each layer usually vary by: its running variances without what their first values weigh.

    Infinite before the first update, when nothing is usual yet, and where there are no running statistics.
    A function of the run's state, so the same on any rank and after a resume.
    """

    def __init__(self, layers: Sequence[Any]) -> None:
        """layers: batch norms, by number; they may come later, and get other buffers."""
        self._layers = layers
        self._constants: dict[Any, Tensor] = {}

    def __call__(self, numbers: Sequence[int], device: torch.device) -> Tensor:
        """(len(numbers),) float64: of the layers with these numbers, on their device."""
        tracked = [number for number, layer in enumerate(self._layers) if layer.running_var is not None]
        usual = self._constant("nothing", [torch.inf], device)
        if tracked:
            usual = torch.cat([self._of([self._layers[number] for number in tracked], device), usual])
        places = [tracked.index(number) if number in tracked else len(tracked) for number in numbers]
        return usual[self._constant(tuple(places), places, device)]

    def _of(self, layers: Sequence[Any], device: torch.device) -> Tensor:
        widths = [layer.num_features for layer in layers]
        updates = torch.stack([layer.num_batches_tracked for layer in layers])
        initial = self._constant("kept", [1 - layer.momentum for layer in layers], device) ** updates
        rows = self._constant("rows", [i for i, width in enumerate(widths) for _ in range(width)], device)
        columns = self._constant("columns", [i for width in widths for i in range(width)], device)
        first = (initial * (1 + 1e-5))[rows]  # and its rounding
        own = torch.zeros(len(layers), max(widths), dtype=torch.float64, device=device)
        own[rows, columns] = (torch.cat([layer.running_var for layer in layers]) - first).clamp(min=0)
        return torch.where(updates == 0, torch.inf, own.sum(1) / (1 - initial))

    def _constant(self, name: Any, values: list[float] | list[int], device: torch.device) -> Tensor:
        """Values that stay on the device: to send them each time would be to wait for it."""
        found = self._constants.get((name, device))
        if found is None:
            dtype = torch.int64 if isinstance(values[0], int) else torch.float64
            found = self._constants[name, device] = torch.tensor(values, dtype=dtype, device=device)
        return found
