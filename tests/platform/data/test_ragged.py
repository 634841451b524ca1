"""Rows of unequal length: cut, padded, and through Arrow without a copy."""

import numpy as np
import pyarrow as pa

from vergence.platform.data.ragged import Ragged

ROWS = [np.arange(3), np.arange(0), np.arange(5) + 10, np.arange(1) + 20]


def test_parts_and_padding() -> None:
    rows = Ragged.of(ROWS)
    assert len(rows) == 4
    assert rows.lengths.tolist() == [3, 0, 5, 1]
    assert rows.padded().tolist() == [[0, 1, 2, 0, 0], [0] * 5, [10, 11, 12, 13, 14], [20, 0, 0, 0, 0]]
    part = rows[1:3]
    assert part.flat.tolist() == [10, 11, 12, 13, 14]
    assert part.padded().tolist() == [[0] * 5, [10, 11, 12, 13, 14]]
    assert rows[2:2].padded().shape == (0, 0)
    equal = Ragged.of([np.arange(4)] * 3)
    assert np.shares_memory(equal[1:].padded(), equal.values)


def test_a_slice_of_a_column_is_a_view_of_the_same_bytes() -> None:
    rows = Ragged.of(ROWS)
    column = rows.column()
    assert np.shares_memory(Ragged.of_column(column).values, rows.values)
    part = Ragged.of_column(column.slice(2, 2))
    assert part.padded().tolist() == [[10, 11, 12, 13, 14], [20, 0, 0, 0, 0]]
    again = Ragged.of_column(rows[1:3].column())
    assert again.padded().tolist() == rows[1:3].padded().tolist()
    joined = pa.chunked_array([column.slice(2, 1), column.slice(0, 1)]).combine_chunks()
    assert Ragged.of_column(joined).flat.tolist() == [10, 11, 12, 13, 14, 0, 1, 2]
