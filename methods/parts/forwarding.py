"""Which views share a forward: that decides over which rows a batch norm takes its statistics."""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

ViewForward = Literal["joint", "per_view"]


def embed_views(network: Callable[[Tensor], Tensor], views: Sequence[Tensor], how: ViewForward) -> Tensor:
    """V views, each (n, 3, H, W) -> (n, V, d).

    joint: one forward of the V * n rows, view-major. per_view: one forward a view, in order.
    """
    if how == "joint":
        return torch.stack(network(torch.cat(tuple(views))).chunk(len(views)), dim=1)
    return torch.stack([network(view) for view in views], dim=1)
