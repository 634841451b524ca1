"""`vergence embed`: the embeddings of shards or of a folder of images, as parquet."""

import argparse
import contextlib
import json
import signal
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from vergence.pipelines.embedded import Writer, Written
from vergence.platform.cluster.capacity import physical_cpus
from vergence.platform.errors import UserError, VergenceError
from vergence.platform.store import folder_of, is_url, name_of

if TYPE_CHECKING:
    from vergence.pipelines.embedded import Vectors
    from vergence.platform.encoders.encoder import Embedder, Rows
    from vergence.platform.encoders.images import Ids
    from vergence.platform.encoders.sources import Images
    from vergence.platform.place import Place

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
        help="one file if it ends in .parquet; else a folder with one file a shard, which an interrupted "
        "command goes on with; either may be a URL in a store",
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

    _place(args.out)
    encoder, gpus = load_encoder(args.encoder), None
    if args.workers is None:
        encoder = encoder.to(usable(args.device))
    else:
        gpus = gpus_of(args.workers, args.device)
    written = embed(encoder, args.source, args.out, workers=args.workers, gpus=gpus)
    if args.json:
        about = {"out": args.out, "encoder": encoder.name, "dim": encoder.dim, "rows": written.rows}
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


def embed(
    encoder: "Embedder",
    source: str,
    out: str | Path,
    *,
    workers: int | None = None,
    gpus: bool | None = None,
) -> Written:
    """Write the embeddings of all readable images in `source` to `out`, atomically.

    A file or folder that this encoder made from these data is kept; what is missing in a folder is added.

    Args:
        out: a file that ends in .parquet, or a folder; paths or URLs.
        workers: actors of a Ray session that embed; None: this process does, on the encoder's device.
        gpus: whether each of them takes a GPU; None: if there are as many.
    Raises UserError: no images, or `out` holds something else; VergenceError: no image can be read.
    """
    from vergence.platform.data.progress import Bar
    from vergence.platform.encoders.sources import open_images

    place, name = _place(out)
    images = open_images(source)
    total = sum(len(ids) for _, ids in images.pieces)
    with Bar("embedding", total, enabled=True) as advance:
        if workers is None:
            vectors = _here(encoder, images, advance)
        else:
            vectors = _on_ray(encoder, images, advance, workers, gpus)
        writer = Writer(place, encoder, images, vectors, advance)
        if name:
            writer.file(name)
        else:
            writer.folder()
    if not writer.written.rows:
        if name:
            place.delete(name)
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


def _place(out: str | Path) -> tuple["Place", str]:
    """The folder of OUT and, if that is one file, its name in there. Raises UserError: another kind of file."""
    from vergence.platform.place import place_of

    text = str(out).rstrip("/") if is_url(out) else str(Path(out))
    if text.lower().endswith(FILE_ENDINGS):
        raise UserError(
            f"{out}: embeddings are written as parquet; OUT ends in .parquet, or is a folder's name"
        )
    if text.endswith(".parquet"):
        return place_of(folder_of(text) if is_url(text) else Path(text).parent), name_of(text)
    if Path(text).is_file():
        raise UserError(f"{out}: is a file; OUT is a name that ends in .parquet, or a folder")
    return place_of(text), ""
