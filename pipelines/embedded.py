"""The files of `vergence embed`: what is missing is written, what is there is kept or refused."""

import contextlib
import io
import json
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vergence.platform.errors import UserError
from vergence.platform.text import printable

if TYPE_CHECKING:
    from vergence.platform.encoders.encoder import Embedder, Rows
    from vergence.platform.encoders.images import Ids
    from vergence.platform.encoders.sources import Images
    from vergence.platform.place import Place

    # pieces of ids, and for each its readable ids with their vectors
    Vectors = Callable[[Sequence[Ids]], Generator[tuple[Ids, Rows]]]

MANIFEST = "_MANIFEST.json"
FOOTER = 64 << 10  # bytes of a parquet file's end in which what it says of itself mostly is
MAGIC = b"PAR1"


@dataclass
class Written:
    """What is in OUT now."""

    rows: int = 0
    bad: list[str] = field(default_factory=list)  # places of images left out
    notes: list[str] = field(default_factory=list)  # a line each for what else was given and is not used
    existed: bool = True  # nothing had to be computed


class Writer:
    """Writes what is missing in a place, and counts all that is there in `written`."""

    def __init__(
        self,
        place: "Place",
        encoder: "Embedder",
        images: "Images",
        vectors: "Vectors",
        advance: Callable[[int], None],
    ) -> None:
        self.place, self.images, self.vectors, self.advance = place, images, vectors, advance
        self.written = Written(notes=images.notes)
        self.about: dict[str, Any] = {
            "encoder": encoder.name,
            "encoder_digest": encoder.digest,
            "data_digest": images.digest,
            "dim": encoder.dim,
            "size": encoder.size,
        }

    def file(self, name: str) -> None:
        """All pieces in one file."""
        pieces = [ids for _, ids in self.images.pieces]
        if name in self.place.names():
            self._keep(name, pieces)
        else:
            with contextlib.closing(self.vectors(pieces)) as found:
                self._write(name, pieces, found)

    def folder(self) -> None:
        """One file a piece, then the manifest: its presence says that the folder is whole."""
        there = {name for name in self.place.names() if name.endswith(".parquet")}
        for name in sorted(there):
            self._refuse_other(name)
        files = [(f"{name}.parquet", ids) for name, ids in self.images.pieces]
        rows = {}
        with contextlib.closing(self.vectors([ids for name, ids in files if name not in there])) as found:
            for name, ids in files:
                before = self.written.rows
                if name in there:
                    self._keep(name, [ids])
                else:
                    self._write(name, [ids], found)
                rows[printable(name)] = self.written.rows - before
        manifest = self.about | {"rows": rows, "unreadable": self.written.bad}
        with self.place.writing(MANIFEST) as draft:
            draft.write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")

    def _keep(self, name: str, pieces: "Sequence[Ids]") -> None:
        found = self._refuse_other(name)
        self.advance(sum(map(len, pieces)))
        self._count(found)

    def _count(self, about: dict[str, Any]) -> None:
        self.written.rows += about["rows"]
        self.written.bad += about["unreadable"]

    def _refuse_other(self, name: str) -> dict[str, Any]:
        """What a file of this encoder and these data says about itself; UserError for any other file."""
        found = _read_about(self.place, name)
        for key in ("encoder_digest", "data_digest"):
            if found.get(key) != self.about[key]:
                got = f"{found.get('encoder', 'another program')}, {key} {found.get(key)}"
                raise UserError(
                    f"{self.place.where}/{name}: exists and is of {got}, not {self.about[key]}; choose another OUT or "
                    "delete it"
                )
        return found

    def _write(self, name: str, pieces: "Sequence[Ids]", found: "Iterator[tuple[Ids, Rows]]") -> None:
        """Write a parquet file, a row group a piece."""
        import numpy as np
        import pyarrow as pa
        import pyarrow.parquet as pq

        images = self.images
        schema = pa.schema([("key", pa.string()), ("embedding", pa.list_(pa.float32()))])
        about = self.about | {"rows": 0, "unreadable": []}
        with (
            self.place.writing(name) as draft,
            draft.open("wb") as stream,
            pq.ParquetWriter(stream, schema) as writer,
        ):
            for ids in pieces:
                rows, embeddings = next(found)
                offsets = np.arange(len(rows) + 1, dtype=np.int32) * self.about["dim"]
                lists = pa.ListArray.from_arrays(offsets, embeddings.reshape(-1))
                writer.write_table(pa.table([[images.key(i) for i in rows], lists], schema=schema))
                about["rows"] += len(rows)
                about["unreadable"] += [images.where(i) for i in np.setdiff1d(ids, rows)]
            writer.add_key_value_metadata({"vergence": json.dumps(about)})
        self._count(about)
        self.written.existed = False


def _read_about(place: "Place", name: str) -> dict[str, Any]:
    """What a file of ours says about itself; nothing for any other file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        tail = place.tail(name, FOOTER) or b""
        size = int.from_bytes(tail[-8:-4], "little") + 8
        if tail.endswith(MAGIC) and size > len(tail):
            tail = place.tail(name, size) or b""
        about = (pq.read_metadata(io.BytesIO(MAGIC + tail[-size:])).metadata or {}).get(b"vergence", b"{}")
        found: dict[str, Any] = json.loads(about)
        return found
    except (pa.ArrowInvalid, OSError):
        return {}
