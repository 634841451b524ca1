"""Which views share a forward: that decides over which rows a batch norm takes its statistics.

Views of different sizes never do: small crops have statistics of their own (SwAV, arXiv:2006.09882, section 3.3).
"""

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Literal

import torch
from torch import Tensor

ViewForward = Literal["joint", "per_view"]
VIEW_FORWARD = "Full-size views in one forward, or one forward each; smaller ones share one a size."

Network = Callable[[Tensor], Tensor]


def embed_views(encoder: Network, head: Network, views: Sequence[Tensor], how: ViewForward) -> Tensor:
    """V views (n, 3, S, S), full-size ones first -> (n, V, d).

    joint: one forward of the encoder a size, and the head once on all V * n rows, view-major. per_view: encoder
    and head once for each full-size view, and once for the smaller views of each size.
    """
    sizes = [list(same) for _, same in groupby(views, key=lambda view: view.shape[-1])]
    if how == "joint":
        rows = head(_cat([encoder(_cat(same)) for same in sizes]))
    else:
        full, *small = sizes
        rows = _cat([head(encoder(_cat(some))) for some in [*([view] for view in full), *small]])
    return torch.stack(rows.chunk(len(views)), dim=1)


def _cat(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))
