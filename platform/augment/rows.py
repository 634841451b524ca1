"""Samples of a batch that an operation is for."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class Rows(NamedTuple):
    """At least one sample of a batch."""

    places: Tensor | None  # (k,) int64; None: all of them


def rows_of(mask: NDArray[np.bool_]) -> Rows | None:
    """The samples where the mask, (n,), is true; None: there are none."""
    rows = np.flatnonzero(mask)
    if not len(rows):
        return None
    return Rows(None if len(rows) == len(mask) else torch.from_numpy(rows))


def where(rows: Rows | None, x: Tensor, op: Callable[[Tensor], Tensor]) -> None:
    """x[rows] = op(x[rows]), without a copy when that is all of them; op works in place."""
    if rows is None:
        return
    if rows.places is None:
        op(x)
    else:
        x.index_copy_(0, rows.places, op(x.index_select(0, rows.places)))
