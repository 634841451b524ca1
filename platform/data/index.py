"""Where each sample of a set of shards lies: scanned from the tar headers once, kept as parquet.

Row number = sample id. Columns: shard (int32), key (string), label (int64, null where a sample has no class; only
if one has) and, for each extension, EXT.offset and EXT.size (int64, null where a sample has no such member). Only
the columns that are used are loaded: 10^7 samples cost 200 MB for their images.
"""

import hashlib
import json
import weakref
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from vergence.platform.data.contents import CHUNK
from vergence.platform.data.expand import expand
from vergence.platform.data.formats import MEMBER_EXTENSIONS
from vergence.platform.data.index_cache import hold, tidy, used
from vergence.platform.data.scan import VERSION, Scanned, image_extensions, scan
from vergence.platform.errors import UserError
from vergence.platform.files import replacing
from vergence.platform.store import Object, name_of
from vergence.platform.text import printable

SHOWN = 5  # shards that cannot be used, in a message


class Index:
    """The samples of a set of shards; opened, in any process, from the parquet file that `open_index` made."""

    def __init__(self, path: Path) -> None:
        self.path = path
        held = hold(path)
        weakref.finalize(
            self, held.close
        )  # it lives in tasks, threads and generators, and is nobody's to close
        self._file = file = pq.ParquetFile(held)  # pyarrow takes no path that is not UTF-8
        about = json.loads(self._file.schema_arrow.metadata[b"vergence"])
        if about.get("schema") != VERSION:
            raise ValueError(
                f"{path}: an index of another version of Vergence"
            )  # made anew where it is asked for
        self.digest: str = about["digest"]
        self.shards: list[str] = [shard for shard, _, _ in about["shards"]]  # absolute paths or URLs
        self.shard_sizes: list[int] = [size for _, size, _ in about["shards"]]
        self.shard_versions: list[str] = [version for _, _, version in about["shards"]]  # see `Shards.found`
        self.extensions: dict[str, int] = about["extensions"]  # extension -> samples that have it
        self.classes: list[str] | None = about["classes"]  # by label, where the classes are words
        self.notes: list[str] = about["notes"]  # a line each for what the shards hold and is not used
        self._members: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        self._shard: np.ndarray | None = None
        self._labels: np.ndarray | None = None
        self._keys = lru_cache(maxsize=4)(
            lambda group: file.read_row_group(group, columns=["key"])[
                "key"
            ]  # no cycle with self: it holds the file
        )

    def __len__(self) -> int:
        return int(self._file.metadata.num_rows)

    def __reduce__(self) -> tuple[type["Index"], tuple[Path]]:
        return Index, (self.path,)

    @property
    def image_extension(self) -> str:
        """The extension of most images."""
        return max(image_extensions(self.extensions), key=lambda extension: self.extensions[extension])

    def extensions_of(self, kind: str) -> Sequence[str]:
        """The extensions of a kind of member that some sample has, best first."""
        if kind == "image":
            return image_extensions(self.extensions)
        return [name for name in MEMBER_EXTENSIONS.get(kind, (kind,)) if name in self.extensions]

    def key(self, sample_id: int) -> str:
        group, row = divmod(int(sample_id), CHUNK)
        return str(self._keys(group)[row].as_py())

    def shard_of(self, sample_id: int) -> str:
        return self.shards[int(self._shard_numbers()[sample_id])]

    def where(self, sample_id: int) -> str:
        """shard.tar:key, for messages."""
        return printable(f"{name_of(self.shard_of(sample_id))}:{self.key(sample_id)}")

    def members(self, kind: str, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Where one member of each sample lies.

        Args:
            kind: an extension; or "image" or the name of a modality, for the first of its extensions that a sample has.
            ids: (n,) int64.
        Returns: shard numbers int32, offsets int64, sizes int64, each (n,); offset and size are -1 without
            such a member.
        """
        if kind not in self._members:
            self._members[kind] = self._coalesce(self.extensions_of(kind))
        offset, size = self._members[kind]
        return self._shard_numbers()[ids], offset[ids], size[ids]

    @property
    def has_labels(self) -> bool:
        """Whether some sample has a class."""
        return "label" in self._file.schema_arrow.names

    def labels(self, ids: np.ndarray) -> np.ndarray | None:
        """Class of each sample, int64 (n,), -1 for none; None when no sample of the set has one."""
        if not self.has_labels:
            return None
        if self._labels is None:
            self._labels = self._column("label")
        return self._labels[ids]

    def _coalesce(self, extensions: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        offset = size = np.full(len(self), -1, np.int64)
        for i, extension in enumerate(extensions):
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


def open_index(
    pattern: str | Path, cache: Path, progress: bool = False, images: bool = True, anew: bool = False
) -> Index:
    """The index of the shards of a pattern: from `cache` if no shard has changed, else by a scan.

    Args:
        pattern: see `expand`.
        cache: folder that keeps the parquet files.
        progress: draw a bar on stderr if the scan is slow.
        images: whether a set without any is refused.
        anew: scan in any case. What shards of a store hold is read from the files beside them, see `Stored`.
    Raises UserError: nothing matches, a shard is empty, compressed or truncated, or none has images (or samples).
    """
    shards = expand(pattern)
    index, said = None if anew else _cached(_file(cache, shards.found)), list[str]()
    if index is None:
        scanned = scan(shards.found, progress, cache)
        _refuse_unusable(scanned, len(shards.found), images)
        index, said = keep(scanned, shards.found, cache), scanned.said
    if images and not index.extensions_of("image"):
        raise UserError(f"{pattern}: the shards hold no images, only .{', .'.join(index.extensions)}")
    index.notes = shards.notes + said + index.notes
    return index


def _cached(path: Path) -> Index | None:
    """None: it is not there, or damaged: it is only a cache."""
    try:
        index = Index(path)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    used(path)
    return index


def keep(scanned: Scanned, shards: Sequence[Object], cache: Path) -> Index:
    """Write what a scan of `shards` found into the cache, and open it.

    The file is named by what tells that a shard has changed: ranks of a run go on with the index they began with.
    """
    path = _file(cache, shards)
    cache.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary, temporary.open("wb") as file:
        pq.write_table(scanned.table, file, row_group_size=CHUNK, write_statistics=False)
    index = Index(path)
    tidy(path)
    return index


def _file(cache: Path, shards: Sequence[Object]) -> Path:
    name = hashlib.sha256(json.dumps(shards).encode("utf-8", "surrogateescape")).hexdigest()[:24]
    return cache.absolute() / f"{name}-{VERSION}.parquet"


def _refuse_unusable(scanned: Scanned, num_shards: int, images: bool) -> None:
    """All shards that cannot be read are named at once, and those without images if there are no others."""
    others = len(scanned.without_images) < num_shards or (len(scanned.table) and not images)
    unusable = scanned.damaged or ({} if others else scanned.without_images)
    if not unusable:
        return
    named = "; ".join(f"{path}: {reason}" for path, reason in [*unusable.items()][:SHOWN])
    more = (
        f"; and {len(unusable) - SHOWN:,} more, see `vergence shards check`" if len(unusable) > SHOWN else ""
    )
    count = f"{len(unusable):,} of {num_shards:,} shards cannot be used: " if len(unusable) > 1 else ""
    raise UserError(f"{count}{named}{more}")
