"""Rows of unequal length, one behind the other in memory."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

Array = NDArray[np.generic]  # of any type of numbers


@dataclass(frozen=True, eq=False)
class Ragged:
    """Row i is values[offsets[i] : offsets[i + 1]].

    values: (total,) of any number type, perhaps read-only.  offsets: (n + 1,) int64; the first need not be 0.
    """

    values: Array
    offsets: NDArray[np.int64]

    @classmethod
    def of(cls, rows: Iterable[Array]) -> "Ragged":
        """rows: at least one, 1-D, of one type."""
        kept = list(rows)
        return cls(np.concatenate(kept), np.cumsum([0, *map(len, kept)], dtype=np.int64))

    @classmethod
    def of_column(cls, column: pa.LargeListArray) -> "Ragged":
        """Without a copy."""
        return cls(column.values.to_numpy(), column.offsets.to_numpy())

    def column(self) -> pa.LargeListArray:
        """Without a copy."""
        return pa.LargeListArray.from_arrays(pa.array(self.offsets), pa.array(self.values))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, rows: slice) -> "Ragged":
        """Consecutive rows, without a copy."""
        start, stop, _ = rows.indices(len(self))
        return Ragged(self.values, self.offsets[start : stop + 1])

    @property
    def lengths(self) -> NDArray[np.int64]:
        """(n,)"""
        return np.diff(self.offsets)

    @property
    def flat(self) -> Array:
        """The values of all rows, without a copy."""
        return self.values[self.offsets[0] : self.offsets[-1]]

    def padded(self) -> Array:
        """(n, longest), zeros behind the shorter ones."""
        lengths = self.lengths
        longest = int(lengths.max(initial=0))
        if (lengths == longest).all():
            return self.flat.reshape(len(self), longest)
        dense = np.zeros((len(self), longest), self.values.dtype)
        dense[np.arange(longest) < lengths[:, None]] = self.flat
        return dense
