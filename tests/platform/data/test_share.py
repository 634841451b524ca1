"""A share through a table, whole or cut and joined by rows."""

from typing import Any

import numpy as np
import pyarrow as pa

from vergence.platform.augment.crop import cut
from vergence.platform.augment.presets import ViewSpec
from vergence.platform.data.ragged import Ragged
from vergence.platform.data.share import Share, table_of

N = 6
VIEWS = [ViewSpec(count=2, size=8), ViewSpec(size=4)]


def columns() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (5 + i, 8, 3), dtype=np.uint8) for i in range(N)]
    ids = np.arange(N) + 2**40
    return {
        "ids": ids,
        "positions": np.arange(N) + 100,
        "bad": np.arange(N) % 3 == 0,
        "pictures": cut(pictures, ids, 2, VIEWS, 0),
        "fields": {
            "label": np.arange(N),
            "text": Ragged.of([np.arange(i, dtype=np.uint8) for i in range(N)]),
            "audio": Ragged.of([np.full(9 - i, i / 8, np.float32) for i in range(N)]),
            "audio.rate": np.full(N, 8000),
            "array": Ragged.of([np.arange(6.0) + i for i in range(N)]),
            "array.shape": Ragged.of([np.array([2, 3])] * N),
        },
    }


def test_what_went_in_comes_out() -> None:
    given = columns()
    share = Share.of(table_of(**given))
    for name in ("ids", "positions", "bad"):
        assert getattr(share, name).dtype == given[name].dtype
        np.testing.assert_array_equal(getattr(share, name), given[name])
    assert share.pictures is not None
    np.testing.assert_array_equal(share.pictures.pixels.flat, given["pictures"].pixels.flat)
    assert np.shares_memory(share.pictures.pixels.values, given["pictures"].pixels.values)
    np.testing.assert_array_equal(share.pictures.sizes, given["pictures"].sizes)
    np.testing.assert_array_equal(share.pictures.geometry, given["pictures"].geometry)
    assert set(share.fields) == {
        "label",
        "text",
        "text.length",
        "audio",
        "audio.length",
        "audio.rate",
        "array",
    }
    assert share.fields["label"].tolist() == list(range(N))
    assert share.fields["text"].shape == (N, 5)
    assert share.fields["text.length"].tolist() == list(range(N))
    assert share.fields["audio"][2].tolist() == [0.25] * 7 + [0.0] * 2
    assert share.fields["array"].shape == (N, 2, 3)


def test_any_rows_of_a_table_are_a_share() -> None:
    table = table_of(**columns())
    joined = Share.of(pa.concat_tables([table.slice(4, 2), table.slice(1, 2)]))
    whole = Share.of(table)
    rows = [4, 5, 1, 2]
    assert joined.ids.tolist() == whole.ids[rows].tolist()
    assert joined.bad.tolist() == whole.bad[rows].tolist()
    assert joined.fields["audio.length"].tolist() == [5, 4, 8, 7]
    assert joined.fields["audio"].shape == (4, 8)  # padded to the longest of these
    assert joined.pictures is not None
    assert whole.pictures is not None
    for i, row in enumerate(rows):
        a, b = joined.pictures.part(slice(i, i + 1)), whole.pictures.part(slice(row, row + 1))
        assert (a.pixels.flat == b.pixels.flat).all()
        assert (a.geometry == b.geometry).all()
        assert (a.sizes == b.sizes).all()


def test_a_method_without_pictures_has_none() -> None:
    share = Share.of(table_of(**{**columns(), "pictures": None, "fields": {}}))
    assert share.pictures is None
    assert share.fields == {}
