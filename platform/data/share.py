"""What a rank gets for one step: its part of the global batch, as it travels from reader tasks to the rank loop."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vergence.platform.augment.crop import GEOMETRY, Cut
from vergence.platform.data.modality import LABEL, MODALITIES, Parts
from vergence.platform.data.ragged import Array, Ragged


class Share(NamedTuple):
    """n samples of one step, in the order of the plan.

    pictures: cut for their views, None where the method has none.  fields: what else the method needs, by name, each
    (n, ...).
    """

    ids: NDArray[np.int64]  # (n,)
    positions: NDArray[np.int64]  # (n,) in the whole run
    bad: NDArray[np.bool_]  # (n,) another sample stands in for the planned one
    pictures: Cut | None
    fields: Mapping[str, Array]
    retries: int = 0  # requests that the store was asked again for
    is_bypassed: bool = False  # whether a node could not keep what it fetched

    @classmethod
    def of(cls, table: pa.Table) -> "Share":
        """The samples of a table, as `table_of` made it; nothing is copied but where rows are padded."""
        pieces = {name: _piece(table[name]) for name in table.column_names}
        pictures = None
        if "pixels" in pieces:
            sizes = np.stack([pieces.pop(name).to_numpy() for name in ("height", "width")], axis=1)
            geometry = Ragged.of_column(pieces.pop("geometry")).flat.astype(np.float32, copy=False)
            pixels = Ragged.of_column(pieces.pop("pixels"))
            pictures = Cut(pixels, sizes, geometry.reshape(len(table), -1, GEOMETRY))
        retries, bypassed = (int(pieces.pop(name).to_numpy().sum()) for name in ("retries", "bypassed"))
        ids, positions, bad = (pieces.pop(name).to_numpy() for name in ("id", "position", "bad"))
        return cls(ids, positions, bad.view(np.bool_), pictures, _collated(pieces), retries, bypassed > 0)


def table_of(
    ids: NDArray[np.int64],
    positions: NDArray[np.int64],
    bad: NDArray[np.bool_],
    pictures: Cut | None,
    fields: Mapping[str, Array | Ragged],
    retries: int = 0,
    is_bypassed: bool = False,
) -> pa.Table:
    """n samples as the columns of a table, which is cut and joined by rows: any run of its rows is a share."""
    columns: dict[str, Array | Ragged] = {"id": ids, "position": positions, "bad": bad.view(np.uint8)}
    columns["retries"] = np.where(np.arange(len(ids)) == 0, retries, 0).astype(np.int32)
    columns["bypassed"] = np.full(len(ids), is_bypassed, np.uint8)
    if pictures is not None:
        columns |= {"pixels": pictures.pixels, "height": pictures.sizes[:, 0], "width": pictures.sizes[:, 1]}
        width = pictures.geometry.shape[1] * GEOMETRY
        columns["geometry"] = Ragged(pictures.geometry.reshape(-1), np.arange(len(ids) + 1) * width)
    columns |= fields
    return pa.table({n: x.column() if isinstance(x, Ragged) else pa.array(x) for n, x in columns.items()})


def rows_of(name: str, parts: Sequence[Parts]) -> dict[str, Array | Ragged]:
    """What n members of a modality hold, as rows by the names of their parts."""
    return {
        f"{name}{end}": Ragged.of(part[end] for part in parts)
        if parts[0][end].ndim
        else np.array([part[end] for part in parts])
        for end in parts[0]
    }


def _piece(column: pa.ChunkedArray) -> pa.Array:
    """Without a copy where it is in one piece."""
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _collated(pieces: Mapping[str, pa.Array]) -> dict[str, Array]:
    fields: dict[str, Array] = {}
    for name in dict.fromkeys(each.partition(".")[0] for each in pieces):
        rows = {
            each.removeprefix(name): Ragged.of_column(piece)
            if isinstance(piece, pa.LargeListArray)
            else piece.to_numpy()
            for each, piece in pieces.items()
            if each.partition(".")[0] == name
        }
        parts = rows if name == LABEL else MODALITIES[name].collate(rows)
        fields |= {f"{name}{end}": part for end, part in parts.items() if not isinstance(part, Ragged)}
    return fields
