"""`vergence embed`: the embeddings of shards or of a folder of images, as parquet."""

import argparse
import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vergence.platform.cluster.capacity import physical_cpus
from vergence.platform.errors import UserError, VergenceError
from vergence.platform.home import home
from vergence.platform.text import printable

if TYPE_CHECKING:
    import numpy as np

    from vergence.platform.encoders.encoder import Embedder
    from vergence.platform.encoders.images import ImageSource

MANIFEST = "_MANIFEST.json"
FOLDER_PIECE = 5000  # images of a plain folder in one output file


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
    parser.epilog = """\
columns: key (the sample's key, or the path inside the folder), embedding (list of float32, not normalised)

examples:
  vergence embed models:/simclr-cifar10@champion cifar10/test.tar test.parquet
  vergence embed simclr-cifar10 "photos/train-{000000..000099}.tar" embeddings/
  vergence embed encoder.pt2 ~/Pictures pictures.parquet"""


def main(args: argparse.Namespace) -> int:
    from vergence.platform.encoders.encoder import usable
    from vergence.platform.encoders.load import load_encoder

    device = usable(args.device)
    encoder = load_encoder(args.encoder).to(device)
    written = embed(encoder, args.source, args.out)
    state = "exists already, nothing to do" if written.existed else "written"
    print(f"{args.out}: {state}: {written.rows:,} embeddings of {encoder.dim} numbers by {encoder.name}")
    if written.bad:
        shown = ", ".join(written.bad[:5]) + (" ..." if len(written.bad) > 5 else "")
        print(f"{len(written.bad):,} images cannot be read and were left out: {shown}")
    for note in written.notes:
        print(note)
    return 0


@dataclass
class Written:
    """What is in OUT now."""

    rows: int = 0
    bad: list[str] = field(default_factory=list)  # places of images left out
    notes: list[str] = field(default_factory=list)  # a line each for what else was given and is not used
    existed: bool = True  # nothing had to be computed


def embed(encoder: "Embedder", source: str, out: Path) -> Written:
    """Write the embeddings of all readable images in `source` to `out`, atomically, on the encoder's device.

    A file or folder that this encoder made from these data is kept; what is missing in a folder is added.
    Raises UserError: no images, or `out` holds something else; VergenceError: no image can be read.
    """
    from vergence.platform.data.progress import Bar

    images = open_images(source)
    total = sum(len(ids) for _, ids in images.pieces)
    with Bar("embedding", total, enabled=True) as advance:
        writer = _Writer(encoder, images, advance)
        if out.suffix == ".parquet":
            writer.file(out, [ids for _, ids in images.pieces])
        else:
            writer.folder(out)
    if not writer.written.rows:
        if out.is_file():
            out.unlink()
        raise VergenceError(
            f"{source}: none of its {total:,} images can be read, the first is {writer.written.bad[0]}"
        )
    return writer.written


class _Writer:
    """Writes what is missing in OUT, and counts all that is there in `written`."""

    def __init__(self, encoder: "Embedder", images: "Images", advance: Callable[[int], None]) -> None:
        self.encoder, self.images, self.advance = encoder, images, advance
        self.written = Written(notes=images.notes)
        self.about: dict[str, Any] = {
            "encoder": encoder.name,
            "encoder_digest": encoder.digest,
            "data_digest": images.digest,
            "dim": encoder.dim,
            "size": encoder.size,
        }

    def folder(self, out: Path) -> None:
        """One file a piece, then the manifest: its presence says that the folder is whole."""
        if out.exists() and not out.is_dir():
            raise UserError(f"{out}: is a file; OUT is a name that ends in .parquet, or a folder")
        out.mkdir(parents=True, exist_ok=True)
        for file in sorted(out.glob("*.parquet")):
            self._refuse_other(file)
        rows = {}
        for name, ids in self.images.pieces:
            before = self.written.rows
            self.file(out / f"{name}.parquet", [ids])
            rows[printable(f"{name}.parquet")] = self.written.rows - before
        manifest = self.about | {"rows": rows, "unreadable": self.written.bad}
        draft = out / f".{MANIFEST}.{os.getpid()}"
        draft.write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
        draft.replace(out / MANIFEST)

    def file(self, file: Path, pieces: "list[np.ndarray]") -> None:
        """Make sure that `file` holds the pieces, one row group each."""
        if file.exists():
            found = self._refuse_other(file)
            self.advance(sum(map(len, pieces)))
        else:
            found = self._write(file, pieces)
            self.written.existed = False
        self.written.rows += found["rows"]
        self.written.bad += found["unreadable"]

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

    def _write(self, file: Path, pieces: "list[np.ndarray]") -> dict[str, Any]:
        """Write a parquet file under another name, then rename it; what it says about itself."""
        import numpy as np
        import pyarrow as pa
        import pyarrow.parquet as pq

        from vergence.platform.encoders.images import stream_images

        images, dim = self.images, self.encoder.dim
        schema = pa.schema([("key", pa.string()), ("embedding", pa.list_(pa.float32()))])
        file.parent.mkdir(parents=True, exist_ok=True)
        draft = file.with_name(f".{file.name}.{os.getpid()}")
        about = self.about | {"rows": 0, "unreadable": []}
        try:
            with draft.open("wb") as stream, pq.ParquetWriter(stream, schema) as writer:
                for ids in pieces:
                    good, parts = [np.empty(0, np.int64)], [np.empty((0, dim), np.float32)]
                    for some, batch in stream_images(
                        images.open, ids, self.encoder.size, threads=physical_cpus(), progress=self.advance
                    ):
                        good.append(some)
                        parts.append(self.encoder(batch))
                    rows, embeddings = np.concatenate(good), np.concatenate(parts)
                    offsets = np.arange(len(rows) + 1, dtype=np.int32) * dim
                    lists = pa.ListArray.from_arrays(offsets, embeddings.reshape(-1))
                    writer.write_table(pa.table([[images.key(i) for i in rows], lists], schema=schema))
                    about["rows"] += len(rows)
                    about["unreadable"] += [images.where(i) for i in np.setdiff1d(ids, rows)]
                writer.add_key_value_metadata({"vergence": json.dumps(about)})
            draft.replace(file)
        finally:
            draft.unlink(missing_ok=True)
        return about


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


@dataclass(frozen=True)
class Images:
    """Images by id, from shards or from a folder."""

    pieces: "list[tuple[str, np.ndarray]]"  # name -> ids: a shard, or a run of files
    open: "Callable[[], ImageSource]"  # a reader for one thread
    key: Callable[[int], str]
    where: Callable[[int], str]
    digest: str
    notes: list[str]  # a line each for what was given and is not used


def open_images(source: str) -> Images:
    """Shards by pattern; a folder without tars is a folder of images. UserError when there are none."""
    folder = Path(source).expanduser()
    if folder.is_dir() and not any(path.suffix.lower() == ".tar" for path in folder.iterdir()):
        return _open_folder(folder)
    return _open_shards(source)


def _open_shards(pattern: str) -> Images:
    import numpy as np

    from vergence.platform.data.index import open_index
    from vergence.platform.encoders.images import shard_source

    index = open_index(pattern, home() / "index", progress=True)
    ids = np.arange(len(index), dtype=np.int64)
    shards = index.members("image", ids)[0]
    unique = len({path.stem for path in index.shards}) == len(index.shards)
    names = [path.stem if unique else f"{i:06d}-{path.stem}" for i, path in enumerate(index.shards)]
    pieces = [(name, ids[shards == i]) for i, name in enumerate(names)]
    return Images(pieces, shard_source(index), index.key, index.where, index.digest, index.notes)


class _Files:
    """The ImageSource of a folder."""

    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths

    def images(self, ids: "np.ndarray") -> list[Any]:
        from vergence.platform.data.decode import BadSample, decode

        images: list[Any] = []
        for i in ids:
            try:
                images.append(decode(self.paths[i].read_bytes()))
            except BadSample as bad:
                images.append(bad)
        return images


def _open_folder(folder: Path) -> Images:
    import numpy as np

    from vergence.platform.data.formats import IMAGE_EXTENSIONS
    from vergence.platform.data.walk import image_files

    found, left_out = image_files(folder)
    if not found:
        lines = "".join(f"; {line}" for line in left_out.lines())
        raise UserError(
            f"{folder}: no shards (*.tar) and no images (.{', .'.join(IMAGE_EXTENSIONS)}) in this folder{lines}"
        )
    keys, paths = [printable(image.path) for image in found], [folder / image.path for image in found]
    ids = np.arange(len(paths), dtype=np.int64)
    pieces = [
        (f"part-{i // FOLDER_PIECE:05d}", ids[i : i + FOLDER_PIECE]) for i in range(0, len(ids), FOLDER_PIECE)
    ]
    listing = "".join(f"{key}\0{path.stat().st_size}\n" for key, path in zip(keys, paths))
    digest = hashlib.sha256(listing.encode()).hexdigest()

    def where(i: int) -> str:
        return printable(str(paths[i]))

    return Images(pieces, lambda: _Files(paths), keys.__getitem__, where, digest, left_out.lines())
