"""Where each sample of a set of shards lies: scanned from the tar headers once, kept as parquet.

Row number = sample id. Members are grouped by webdataset's rule: key = the path up to the first dot of the
base name, extension = the rest in lower case, one sample = a run of members with the same key. Columns:
shard (int32), key (string) and, for each extension, EXT.offset and EXT.size (int64, null where a sample has
no such member). Only the columns that are used are loaded: 10^7 samples cost 200 MB for their images.
"""

import glob
import hashlib
import json
import os
from collections.abc import Collection, Iterator, Sequence
from functools import lru_cache
from itertools import islice
from pathlib import Path

import braceexpand
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vergence.platform.data import tar
from vergence.platform.data.formats import IMAGE_EXTENSIONS
from vergence.platform.data.progress import Bar
from vergence.platform.errors import UserError

CHUNK = 1 << 16  # samples grouped at a time, and rows of a parquet row group
MAX_EXTENSIONS = 64
_COMPRESSED_NAMES = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
_VERSION = 2

Sample = tuple[str, dict[str, tuple[int, int]]]  # key, {extension: (offset, size)}


def expand(pattern: str | Path) -> list[Path]:
    """The shards that a tar, a folder of tars, a glob or a brace range `{000000..000009}` names.

    Absolute, sorted by path and each once: so the ids do not depend on how the same shards are written.
    Raises UserError naming the part that matches nothing.
    """
    text = os.path.expanduser(pattern)
    try:
        parts = [text] if os.path.lexists(text) else list(braceexpand.braceexpand(text))
    except ValueError:
        raise UserError(f"{pattern}: a brace is not closed; a range is {{000000..000009}}") from None
    shards = {path for part in parts for path in _matches(part, str(pattern))}
    return sorted(shards)


def _matches(part: str, pattern: str) -> list[Path]:
    if os.path.isdir(part):
        found = sorted(Path(part).glob("*.tar"))
        if not found:  # a folder of compressed tars gets its own message, from the scan
            found = sorted(path for path in Path(part).iterdir() if path.name.endswith(_COMPRESSED_NAMES))[:1]
        if not found:
            raise UserError(f"{pattern}: the folder holds no .tar; pack images with `vergence shards pack`")
    else:
        there = [Path(part)] if os.path.exists(part) else [Path(name) for name in glob.glob(part)]
        found = [path for path in there if path.is_file()]
        if there and not found:
            raise UserError(
                f"{pattern}: matches no file, only {there[0]}; give a folder of tars, or FOLDER/*.tar"
            )
    if not found:
        where = "" if part == pattern else f" ({part} does not exist)"
        raise UserError(f"{pattern}: matches no shard{where}; relative paths start at {os.getcwd()}")
    return [path.absolute() for path in found]


def samples(path: Path) -> Iterator[Sample]:
    """The samples of one tar, in order. Raises DamagedShard, UserError (two members of one name)."""
    current: str | None = None
    group: dict[str, tuple[int, int]] = {}
    for name, offset, size in tar.members(path):
        folder, slash, base = name.rpartition("/")
        stem, dot, extension = base.partition(".")
        if not stem or not dot or (name.startswith("__") and "__" in name[2:].partition("/")[0]):
            continue  # hidden, without extension, or webdataset's own notes (__like_this__)
        key, extension = folder + slash + stem, extension.lower()
        if key != current:
            if current is not None:
                yield current, group
            current, group = key, {}
        elif extension in group:
            raise UserError(f"{path}: the sample {key} has two members .{extension}; pack it again")
        group[extension] = (offset, size)
    if current is not None:
        yield current, group


class Index:
    """The samples of a set of shards; opened, in any process, from the parquet file that `open_index` made."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = pq.ParquetFile(path)
        about = json.loads(self._file.schema_arrow.metadata[b"vergence"])
        self.digest: str = about["digest"]
        self.shards = [Path(shard) for shard, _, _ in about["shards"]]
        self.shard_sizes = [size for _, size, _ in about["shards"]]
        self.extensions: dict[str, int] = about["extensions"]  # extension -> samples that have it
        self._members: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        self._shard: np.ndarray | None = None
        self._keys = lru_cache(maxsize=4)(
            lambda group: self._file.read_row_group(group, columns=["key"])["key"]
        )

    def __len__(self) -> int:
        return int(self._file.metadata.num_rows)

    def __reduce__(self) -> tuple[type["Index"], tuple[Path]]:
        return Index, (self.path,)

    @property
    def image_extension(self) -> str:
        """The extension of most images."""
        return max(_image_extensions(self.extensions), key=lambda extension: self.extensions[extension])

    def key(self, sample_id: int) -> str:
        group, row = divmod(int(sample_id), CHUNK)
        return str(self._keys(group)[row].as_py())

    def shard_of(self, sample_id: int) -> Path:
        return self.shards[int(self._shard_numbers()[sample_id])]

    def where(self, sample_id: int) -> str:
        """shard.tar:key, for messages."""
        return f"{self.shard_of(sample_id).name}:{self.key(sample_id)}"

    def members(self, kind: str, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Where one member of each sample lies.

        Args:
            kind: an extension, or "image" for the first image extension that a sample has.
            ids: (n,) int64.
        Returns: shard numbers int32, offsets int64, sizes int64, each (n,); offset and size are -1 without
            such a member.
        """
        if kind not in self._members:
            kinds = _image_extensions(self.extensions) if kind == "image" else [kind]
            self._members[kind] = self._coalesce(kinds)
        offset, size = self._members[kind]
        return self._shard_numbers()[ids], offset[ids], size[ids]

    def _coalesce(self, extensions: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        offset = size = np.full(len(self), -1, np.int64)
        for i, extension in enumerate(name for name in extensions if name in self.extensions):
            columns = self._column(f"{extension}.offset"), self._column(f"{extension}.size")
            if i == 0:
                offset, size = columns
            else:
                offset, size = (np.where(offset < 0, new, old) for new, old in zip(columns, (offset, size)))
        return offset, size

    def _shard_numbers(self) -> np.ndarray:
        if self._shard is None:
            self._shard = self._column("shard")
        return self._shard

    def _column(self, name: str) -> np.ndarray:
        return np.asarray(self._file.read(columns=[name])[name].fill_null(-1).to_numpy())


def open_index(pattern: str | Path, cache: Path, progress: bool = False) -> Index:
    """The index of the shards of a pattern: from `cache` if no shard has changed, else by a scan.

    Args:
        pattern: see `expand`.
        cache: folder that keeps the parquet files.
        progress: draw a bar on stderr if the scan is slow.
    Raises UserError: nothing matches, or a shard is empty, compressed, truncated or without images.
    """
    return index_shards(expand(pattern), cache, progress)


def index_shards(shards: Sequence[Path], cache: Path, progress: bool = False) -> Index:
    """`open_index` of given shards.

    The file is named by what tells that a shard has changed: ranks of a run go on with the index they began with.
    """
    stamps = json.dumps(_stamps(shards))
    name = hashlib.sha256(stamps.encode("utf-8", "surrogateescape")).hexdigest()[:24]
    path = cache.absolute() / f"{name}-{_VERSION}.parquet"
    try:
        return Index(path)
    except (OSError, pa.ArrowInvalid, KeyError, TypeError):
        pass  # not there, or no index: it is only a cache
    table = scan(shards, progress)
    cache.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}.part")
    try:
        pq.write_table(table, temporary, row_group_size=CHUNK, write_statistics=False)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return Index(path)


def _image_extensions(extensions: Collection[str]) -> list[str]:
    """Those of images, best first; `seg.png` counts only where no plain one exists (then only the first)."""
    plain = [extension for extension in IMAGE_EXTENSIONS if extension in extensions]
    dotted = sorted(name for name in extensions if name.rpartition(".")[2] in IMAGE_EXTENSIONS)
    return plain or dotted[:1]


def _stamps(shards: Sequence[Path]) -> list[list[str | int]]:
    """What tells that a shard has changed."""
    return [[str(path), status.st_size, status.st_mtime_ns] for path in shards for status in [path.stat()]]


def scan(shards: Sequence[Path], progress: bool = False) -> pa.Table:
    """The table of an index, digest and shards in its metadata. Raises UserError as `open_index` does."""
    sha256, stamps = hashlib.sha256(), _stamps(shards)
    chunks: list[dict[str, pa.Array]] = []  # by column; arrow arrays, for 10^7 Python objects would not fit
    counts: dict[str, int] = {}
    with Bar("scanning shards", len(shards), enabled=progress) as advance:
        for number, path in enumerate(shards):
            sha256.update(f"{path.name}\n".encode("utf-8", "surrogateescape"))
            kinds, found = set[str](), samples(path)
            while batch := list(islice(found, CHUNK)):
                keys, places = _places(batch, path)
                sha256.update("\0".join(keys).encode())
                chunk = {
                    "shard": pa.array(np.full(len(keys), number, np.int32)),
                    "key": pa.array(keys, pa.string()),
                }
                for extension, (offset, size) in places.items():
                    sha256.update(f"{extension}\n".encode() + offset.astype("<i8").tobytes())
                    sha256.update(size.astype("<i8").tobytes())
                    missing = offset < 0
                    counts[extension] = counts.get(extension, 0) + int(np.count_nonzero(~missing))
                    chunk[f"{extension}.offset"] = pa.array(offset, mask=missing)
                    chunk[f"{extension}.size"] = pa.array(size, mask=missing)
                kinds |= set(places)
                chunks.append(chunk)
            if not _image_extensions(kinds):
                raise UserError(_no_images(path, kinds))
            advance(1)
    about = {"digest": sha256.hexdigest(), "shards": stamps, "extensions": counts}
    return _table(chunks, sorted(counts)).replace_schema_metadata({"vergence": json.dumps(about)})


def _no_images(path: Path, extensions: set[str]) -> str:
    found = f"only .{', .'.join(sorted(extensions))}" if extensions else "no files"
    return f"{path}: the tar holds no images ({found}); an image is KEY.jpg, .png, .webp, ..."


def _places(batch: list[Sample], path: Path) -> tuple[list[str], dict[str, np.ndarray]]:
    """Keys, and for each extension an int64 (2, n): offsets and sizes, -1 where missing."""
    extensions: set[str] = set().union(*(group for _, group in batch))
    if len(extensions) > MAX_EXTENSIONS:
        raise UserError(
            f"{path}: {len(extensions)} different extensions, such as .{min(extensions)}; a key ends at the first "
            "dot of the file name, so replace dots inside names (`vergence shards pack` does)"
        )
    missing = (-1, -1)
    places = {
        extension: np.array([group.get(extension, missing) for _, group in batch], np.int64).T.copy()
        for extension in sorted(extensions)
    }
    return [key for key, _ in batch], places


def _table(chunks: list[dict[str, pa.Array]], extensions: list[str]) -> pa.Table:
    members = [f"{extension}.{what}" for extension in extensions for what in ("offset", "size")]
    types = {"shard": pa.int32(), "key": pa.string()} | dict.fromkeys(members, pa.int64())
    columns = {
        name: pa.chunked_array([chunk.get(name, pa.nulls(len(chunk["key"]), kind)) for chunk in chunks], kind)
        for name, kind in types.items()
    }
    return pa.table(columns)
