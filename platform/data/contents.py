"""What one shard holds: where the members of its samples lie, their classes, and images that end in no sample.

Members are grouped by webdataset's rule: key = the path up to the first dot of the base name, extension = the
rest in lower case, one sample = a run of members with the same key.
"""

from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vergence.platform.data import tar
from vergence.platform.data.formats import START, image_format, is_image
from vergence.platform.data.labels import MAX_BYTES, class_text
from vergence.platform.data.tar import DamagedShard
from vergence.platform.data.walk import LeftOut

if TYPE_CHECKING:
    from hashlib import _Hash

CHUNK = 1 << 16  # samples grouped at a time, and rows of a parquet row group
MAX_EXTENSIONS = 64
LINKS = "links to other members (tar --dereference --hard-dereference packs the files)"

Sample = tuple[str, dict[str, tuple[int, int]], str | None]  # key, {extension: (offset, size)}, class
Chunk = dict[str, pa.Array]  # by column; arrow arrays, for 10^7 Python objects would not fit


class Contents(NamedTuple):
    """chunks: columns key, EXT.offset and EXT.size of each extension that some sample of the chunk has, and where one
    has a .cls, label: dictionary-encoded text, null without a class.  lost: images that end in no sample.
    """

    chunks: list[Chunk]
    lost: LeftOut

    @property
    def extensions(self) -> set[str]:
        return {extension for chunk in self.chunks for extension in extensions_of(chunk)}

    def digest(self, name: str, sha256: "_Hash") -> None:
        """Add to a hash what tells this shard, of this name, from another."""
        sha256.update(f"{name}\n".encode("utf-8", "surrogateescape"))
        for chunk in self.chunks:
            keys = pa.ListArray.from_arrays([0, len(chunk["key"])], chunk["key"])
            sha256.update(pc.binary_join(keys, "\0")[0].as_buffer())
            for extension in extensions_of(chunk):
                sha256.update(f"{extension}\n".encode())
                for column in ("offset", "size"):
                    values = chunk[f"{extension}.{column}"].fill_null(-1).to_numpy()
                    sha256.update(values.astype("<i8", copy=False).data)


def extensions_of(chunk: Chunk) -> list[str]:
    """Sorted; those of some sample."""
    return sorted(name.removesuffix(".size") for name in chunk if name.endswith(".size"))


def read_contents(file: BinaryIO, size: int, name: str) -> Contents:
    """Read the headers of a shard of `size` bytes from front to back, and its .cls members; `name` is for messages.

    Raises DamagedShard.
    """
    chunks, lost = list[Chunk](), LeftOut()
    found = _samples(file, size, name, lost)
    while batch := list(islice(found, CHUNK)):
        keys, places = _places(batch, name)
        chunk = {"key": pa.array(keys, pa.string())}
        for extension, (offset, length) in places.items():
            chunk[f"{extension}.offset"] = pa.array(offset, mask=offset < 0)
            chunk[f"{extension}.size"] = pa.array(length, mask=offset < 0)
        if "cls" in places:
            chunk["label"] = pa.array([text for *_, text in batch], pa.string()).dictionary_encode()
        chunks.append(chunk)
    return Contents(chunks, lost)


def _samples(file: BinaryIO, size: int, shard: str, lost: LeftOut) -> Iterator[Sample]:
    """The samples of one tar, in order; images among the members that end in none are added to `lost`."""
    current: str | None = None
    group: dict[str, tuple[int, int]] = {}
    text: str | None = None
    for name, offset, length in tar.members(file, size, shard):
        folder, slash, base = name.rpartition("/")
        stem, dot, extension = base.partition(".")
        reason = _outside(name, stem, dot, length)
        if reason:
            if is_image(base.lower()) if length < 0 else _starts_as_image(file, offset, length):
                lost.add(reason, name)
            continue
        key, extension = folder + slash + stem, extension.lower()
        if key != current:
            if current is not None:
                yield current, group, text
            current, group, text = key, {}, None
        elif extension in group:
            raise DamagedShard(f"{shard}: the sample {key} has two members .{extension}; pack it again")
        group[extension] = (offset, length)
        if extension == "cls":
            file.seek(offset)
            text = class_text(file.read(min(length, MAX_BYTES + 1)))
    if current is not None:
        yield current, group, text


def _outside(name: str, stem: str, dot: str, size: int) -> str | None:
    """Why a member ends in no sample."""
    if size < 0:
        return LINKS if size == tar.LINK else "sparse files (tar without --sparse packs them whole)"
    if not stem:
        return "hidden names"
    if name.startswith("__") and "__" in name[2:].partition("/")[0]:
        return "names __like this__, which webdataset keeps for its own notes"
    return None if dot else "names without an ending"


def _starts_as_image(file: BinaryIO, offset: int, size: int) -> bool:
    file.seek(offset)
    return image_format(file.read(min(START, size))) is not None


def _places(batch: list[Sample], shard: str) -> tuple[list[str], dict[str, np.ndarray]]:
    """Keys, and for each extension an int64 (2, n): offsets and sizes, -1 where missing."""
    extensions: set[str] = set().union(*(group for _, group, _ in batch))
    if len(extensions) > MAX_EXTENSIONS:
        raise DamagedShard(
            f"{shard}: {len(extensions)} different extensions, such as .{min(extensions)}; a key ends at the first "
            "dot of the file name, so replace dots inside names (`vergence shards pack` does)"
        )
    missing = (-1, -1)
    places = {
        extension: np.array([group.get(extension, missing) for _, group, _ in batch], np.int64).T.copy()
        for extension in sorted(extensions)
    }
    return [key for key, *_ in batch], places
