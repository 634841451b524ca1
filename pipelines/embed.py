"""`vergence embed`: the embeddings of shards or of a folder of images, as parquet."""

import argparse
import contextlib
import json
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from vergence.platform.cluster.capacity import physical_cpus
from vergence.platform.errors import UserError, VergenceError
from vergence.platform.text import printable

if TYPE_CHECKING:
    from vergence.platform.encoders.encoder import Embedder, Rows
    from vergence.platform.encoders.images import Ids
    from vergence.platform.encoders.sources import Images

    # pieces of ids, and for each its readable ids with their vectors
    Vectors = Callable[[Sequence[Ids]], Generator[tuple[Ids, Rows]]]

MANIFEST = "_MANIFEST.json"
FILE_ENDINGS = (".csv", ".txt", ".tsv", ".json", ".npy", ".npz", ".pt", ".pq", ".h5", ".tar", ".zip")
GPUS = {"auto": None, "cpu": False, "cuda": True}  # --device of workers


def configure(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("encoder", metavar="ENCODER", help="a run's name, a .pt2 file or models:/NAME@ALIAS")
    parser.add_argument(
        "source",
        metavar="SHARDS|FOLDER",
        help="shards (tar, folder of tars, glob, brace range) or a folder of images",
    )
    parser.add_argument(
        "out",
        metavar="OUT",
        type=Path,
        help="one file if it ends in .parquet; else a folder with one file a shard, which an interrupted "
        "command goes on with",
    )
    parser.add_argument(
        "--device", default="auto", help="cpu, cuda or cuda:N (default: a GPU if there is one)"
    )
    parser.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="embed on Ray: N actors, with a GPU each if there are as many; on the cluster of RAY_ADDRESS, or here",
    )
    parser.add_argument("--json", action="store_true", help="print what was written as JSON")
    parser.epilog = """\
columns: key (the sample's key, or the path inside the folder), embedding (list of float32, not normalised)

examples:
  vergence embed models:/simclr-cifar10@champion cifar10/test.tar test.parquet
  vergence embed simclr-cifar10 "photos/train-{000000..000099}.tar" embeddings/
  vergence embed simclr-cifar10 "photos/train-*.tar" embeddings/ --workers 8
  vergence embed encoder.pt2 ~/Pictures pictures.parquet"""


def main(args: argparse.Namespace) -> int:
    from vergence.platform.encoders.encoder import usable
    from vergence.platform.encoders.load import load_encoder

    _check_ending(args.out)
    encoder, gpus = load_encoder(args.encoder), None
    if args.workers is None:
        encoder = encoder.to(usable(args.device))
    else:
        gpus = gpus_of(args.workers, args.device)
    written = embed(encoder, args.source, args.out, workers=args.workers, gpus=gpus)
    if args.json:
        about = {"out": str(args.out), "encoder": encoder.name, "dim": encoder.dim, "rows": written.rows}
        print(json.dumps(about | {"unreadable": written.bad, "existed": written.existed}))
        return 0
    state = "exists already, nothing to do" if written.existed else "written"
    print(f"{args.out}: {state}: {written.rows:,} embeddings of {encoder.dim} numbers by {encoder.name}")
    if written.bad:
        shown = ", ".join(written.bad[:5]) + (" ..." if len(written.bad) > 5 else "")
        print(f"{len(written.bad):,} images cannot be read and were left out: {shown}")
    for note in written.notes:
        print(note)
    return 0


def gpus_of(workers: int, device: str) -> bool | None:
    """Whether each of `workers` actors takes a GPU; None: if there are as many. UserError: not so with actors."""
    if workers < 1:
        raise UserError(f"--workers {workers}: give the number of actors, at least 1")
    if device not in GPUS:
        raise UserError(f"--device {device}: workers take auto, cpu or cuda, Ray gives each its GPU")
    return GPUS[device]


@dataclass
class Written:
    """What is in OUT now."""

    rows: int = 0
    bad: list[str] = field(default_factory=list)  # places of images left out
    notes: list[str] = field(default_factory=list)  # a line each for what else was given and is not used
    existed: bool = True  # nothing had to be computed


def embed(
    encoder: "Embedder", source: str, out: Path, *, workers: int | None = None, gpus: bool | None = None
) -> Written:
    """Write the embeddings of all readable images in `source` to `out`, atomically.

    A file or folder that this encoder made from these data is kept; what is missing in a folder is added.

    Args:
        workers: actors of a Ray session that embed; None: this process does, on the encoder's device.
        gpus: whether each of them takes a GPU; None: if there are as many.
    Raises UserError: no images, or `out` holds something else; VergenceError: no image can be read.
    """
    from vergence.platform.data.progress import Bar
    from vergence.platform.encoders.sources import open_images

    _check_ending(out)
    images = open_images(source)
    total = sum(len(ids) for _, ids in images.pieces)
    with Bar("embedding", total, enabled=True) as advance:
        if workers is None:
            vectors = _here(encoder, images, advance)
        else:
            vectors = _on_ray(encoder, images, advance, workers, gpus)
        writer = _Writer(encoder, images, vectors, advance)
        if out.suffix == ".parquet":
            writer.file(out)
        else:
            writer.folder(out)
    if not writer.written.rows:
        if out.is_file():
            out.unlink()
        raise VergenceError(
            f"{source}: none of its {total:,} images can be read, the first is {writer.written.bad[0]}"
        )
    return writer.written


def _here(encoder: "Embedder", images: "Images", advance: Callable[[int], None]) -> "Vectors":
    """By this process."""
    from vergence.platform.encoders.images import stream_images

    def vectors(pieces: "Sequence[Ids]") -> "Generator[tuple[Ids, Rows]]":
        for ids in pieces:
            batches = stream_images(images.open, ids, encoder.size, threads=physical_cpus(), progress=advance)
            yield _joined([(some, encoder(batch)) for some, batch in batches], encoder.dim)

    return vectors


def _on_ray(
    encoder: "Embedder", images: "Images", advance: Callable[[int], None], workers: int, gpus: bool | None
) -> "Vectors":
    """By actors."""
    from vergence.platform.cluster.embed import blocks_of, embedded

    def vectors(pieces: "Sequence[Ids]") -> "Generator[tuple[Ids, Rows]]":
        split = [blocks_of(ids, encoder.size, images.part) for ids in pieces]
        flat = [block for blocks in split for block in blocks]
        with (
            _interruptible() as check,
            contextlib.closing(embedded(encoder, flat, workers=workers, gpus=gpus)) as found,
        ):
            for blocks in split:
                parts = []
                for block in blocks:
                    parts.append(next(found))
                    check()
                    advance(len(block.ids))
                yield _joined(parts, encoder.dim)

    return vectors


@contextlib.contextmanager
def _interruptible() -> Iterator[Callable[[], None]]:
    """Ctrl-C interrupts as ever; what met a callback of Ray's, which swallows it, is raised by calling what is given."""
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    heard = threading.Event()

    def handle(number: int, frame: FrameType | None) -> None:
        heard.set()
        raise KeyboardInterrupt

    def check() -> None:
        if heard.is_set():
            raise KeyboardInterrupt

    previous = signal.signal(signal.SIGINT, handle)
    try:
        yield check
    finally:
        signal.signal(signal.SIGINT, previous)


def _joined(parts: "list[tuple[Ids, Rows]]", dim: int) -> "tuple[Ids, Rows]":
    import numpy as np

    ids, rows = [np.empty(0, np.int64)], [np.empty((0, dim), np.float32)]
    for some, vectors in parts:
        if len(some):
            ids.append(some)
            rows.append(vectors)
    return np.concatenate(ids), np.concatenate(rows)


def _check_ending(out: Path) -> None:
    if out.suffix.lower() in FILE_ENDINGS:
        raise UserError(
            f"{out}: embeddings are written as parquet; OUT ends in .parquet, or is a folder's name"
        )


class _Writer:
    """Writes what is missing in OUT, and counts all that is there in `written`."""

    def __init__(
        self, encoder: "Embedder", images: "Images", vectors: "Vectors", advance: Callable[[int], None]
    ) -> None:
        self.images, self.vectors, self.advance = images, vectors, advance
        self.written = Written(notes=images.notes)
        self.about: dict[str, Any] = {
            "encoder": encoder.name,
            "encoder_digest": encoder.digest,
            "data_digest": images.digest,
            "dim": encoder.dim,
            "size": encoder.size,
        }

    def file(self, out: Path) -> None:
        """All pieces in one file."""
        pieces = [ids for _, ids in self.images.pieces]
        if out.exists():
            self._keep(out, pieces)
        else:
            with contextlib.closing(self.vectors(pieces)) as found:
                self._write(out, pieces, found)

    def folder(self, out: Path) -> None:
        """One file a piece, then the manifest: its presence says that the folder is whole."""
        if out.exists() and not out.is_dir():
            raise UserError(f"{out}: is a file; OUT is a name that ends in .parquet, or a folder")
        out.mkdir(parents=True, exist_ok=True)
        there = set(out.glob("*.parquet"))
        for file in sorted(there):
            self._refuse_other(file)
        files = [(out / f"{name}.parquet", ids) for name, ids in self.images.pieces]
        rows = {}
        with contextlib.closing(self.vectors([ids for file, ids in files if file not in there])) as found:
            for file, ids in files:
                before = self.written.rows
                if file in there:
                    self._keep(file, [ids])
                else:
                    self._write(file, [ids], found)
                rows[printable(file.name)] = self.written.rows - before
        manifest = self.about | {"rows": rows, "unreadable": self.written.bad}
        draft = out / f".{MANIFEST}.{os.getpid()}"
        draft.write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
        draft.replace(out / MANIFEST)

    def _keep(self, file: Path, pieces: "Sequence[Ids]") -> None:
        found = self._refuse_other(file)
        self.advance(sum(map(len, pieces)))
        self._count(found)

    def _count(self, about: dict[str, Any]) -> None:
        self.written.rows += about["rows"]
        self.written.bad += about["unreadable"]

    def _refuse_other(self, file: Path) -> dict[str, Any]:
        """What a file of this encoder and these data says about itself; UserError for any other file."""
        found = _read_about(file)
        for key in ("encoder_digest", "data_digest"):
            if found.get(key) != self.about[key]:
                got = f"{found.get('encoder', 'another program')}, {key} {found.get(key)}"
                raise UserError(
                    f"{file}: exists and is of {got}, not {self.about[key]}; choose another OUT or delete it"
                )
        return found

    def _write(self, file: Path, pieces: "Sequence[Ids]", found: "Iterator[tuple[Ids, Rows]]") -> None:
        """Write a parquet file under another name, a row group a piece, then rename it."""
        import numpy as np
        import pyarrow as pa
        import pyarrow.parquet as pq

        images = self.images
        schema = pa.schema([("key", pa.string()), ("embedding", pa.list_(pa.float32()))])
        file.parent.mkdir(parents=True, exist_ok=True)
        draft = file.with_name(f".{file.name}.{os.getpid()}")
        about = self.about | {"rows": 0, "unreadable": []}
        try:
            with draft.open("wb") as stream, pq.ParquetWriter(stream, schema) as writer:
                for ids in pieces:
                    rows, embeddings = next(found)
                    offsets = np.arange(len(rows) + 1, dtype=np.int32) * self.about["dim"]
                    lists = pa.ListArray.from_arrays(offsets, embeddings.reshape(-1))
                    writer.write_table(pa.table([[images.key(i) for i in rows], lists], schema=schema))
                    about["rows"] += len(rows)
                    about["unreadable"] += [images.where(i) for i in np.setdiff1d(ids, rows)]
                writer.add_key_value_metadata({"vergence": json.dumps(about)})
            draft.replace(file)
        finally:
            draft.unlink(missing_ok=True)
        self._count(about)
        self.written.existed = False


def _read_about(file: Path) -> dict[str, Any]:
    """What a file of ours says about itself; nothing for any other file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with file.open("rb") as stream:
            about = (pq.read_metadata(stream).metadata or {}).get(b"vergence", b"{}")
        found: dict[str, Any] = json.loads(about)
        return found
    except (pa.ArrowInvalid, OSError):
        return {}
