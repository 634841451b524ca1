"""The members of a tar file by a scan of its headers, without reading what is in them.

POSIX.1-2001 (ustar and pax) and GNU tar, uncompressed. About three times as fast as `tarfile`. Tars that were
joined (`cat a.tar b.tar`) are read to the end of the file, not to the first end mark.
"""

import re
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from vergence.platform.errors import UserError

BLOCK = 512
LINK, SPARSE = -1, -2  # as sizes: members whose bytes do not stand in the tar as they are
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\x00": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_LINKS_AND_FOLDERS = b"123456"  # their size field, if any, is not followed by data


class DamagedShard(UserError):
    """A shard that cannot be read as a tar of samples."""


def members(file: BinaryIO, size: int, shard: str) -> Iterator[tuple[str, int, int]]:
    """(name, offset of the data, size in bytes) of each file in the tar, in order; size LINK or SPARSE as above.

    The file is read forward, and back by at most 1 MiB; between two members its position is the caller's to change.
    size: of the whole.  shard: its name, for messages.
    Raises DamagedShard, one line with the cure: empty, compressed, truncated, or no tar at all.
    """
    _refuse_compressed(shard, file.read(6), size)
    yield from _walk(shard, file, size)


def _refuse_compressed(shard: str, start: bytes, size: int) -> None:
    if size == 0:
        raise DamagedShard(f"{shard}: the file is empty (0 bytes); fetch or pack it again")
    for magic, kind in _COMPRESSED.items():
        if start.startswith(magic):
            raise DamagedShard(
                f"{shard}: a {kind}-compressed tar cannot be read at random places; "
                "unpack it to a plain .tar (images do not compress anyway)"
            )


class _Extended(NamedTuple):
    """What headers before a member's own say of it."""

    name: str | None = None
    size: int | None = None
    sparse: bool = False


_NOTHING = _Extended()


def _walk(shard: str, file: BinaryIO, end: int) -> Iterator[tuple[str, int, int]]:
    position, extended, ended = 0, _NOTHING, False
    while True:
        file.seek(position)
        header = file.read(BLOCK)
        if header[257:262] != b"ustar":
            if len(header) == BLOCK and not header.strip(b"\0"):
                more = _next_block(file, position + BLOCK)
                if more is None:
                    return
                position, ended = more, True
                continue
            _check_header(shard, header, position, ended)
        kind, offset = header[156:157], position + BLOCK
        size = _number(shard, header[124:136], position)
        if extended.size is not None and kind not in b"xgLK":
            size = extended.size
        if kind == b"S" and header[482]:
            offset = _behind_the_map(file, offset)
        payload = 0 if kind in _LINKS_AND_FOLDERS else size
        if offset + payload > end:
            name = extended.name or _name(header)
            raise _truncated(shard, f"member {name} ends at byte {offset + payload:,}, the file at {end:,}")
        position = offset + -(-payload // BLOCK) * BLOCK
        if kind == b"x":
            extended = _pax(file.read(size), extended)
        elif kind == b"L":
            extended = extended._replace(
                name=file.read(size).rstrip(b"\0").decode("utf-8", "backslashreplace")
            )
        elif kind not in b"gK":
            if kind in b"12":
                size = LINK
            elif kind == b"S" or extended.sparse:
                size = SPARSE
            if kind in b"0\x00712S":
                yield extended.name or _name(header), offset, size
            extended = _NOTHING


def _next_block(file: BinaryIO, position: int) -> int | None:
    """The first block from `position` on that is not all zero; None: there is none."""
    file.seek(position)
    while data := file.read(1 << 20):
        rest = data.lstrip(b"\0")
        if rest:
            return position + (len(data) - len(rest)) // BLOCK * BLOCK
        position += len(data)
    return None


def _check_header(shard: str, header: bytes, position: int, ended: bool) -> None:
    """Raise DamagedShard unless this is the header of a tar from before POSIX, which has no magic word."""
    whole = len(header) == BLOCK
    if whole and _sum_is_right(header):
        return
    if ended:
        raise DamagedShard(
            f"{shard}: behind the end mark of the tar, at byte {position:,}, stands something that is no tar; "
            "cut it off, or fetch or pack the shard again"
        )
    if not whole:
        raise _truncated(shard, f"it ends at byte {position + len(header):,} without the end mark of a tar")
    raise DamagedShard(f"{shard}: no tar header at byte {position:,}; fetch or pack it again")


def _behind_the_map(file: BinaryIO, offset: int) -> int:
    """Where the data of a sparse file of GNU tar begin: behind the blocks that go on with its map."""
    goes_on = b"\1"
    while goes_on not in (b"", b"\0"):
        file.seek(offset)
        goes_on, offset = file.read(BLOCK)[504:505], offset + BLOCK
    return offset


def _truncated(shard: str, detail: str) -> DamagedShard:
    return DamagedShard(f"{shard}: the tar is truncated ({detail}); fetch or pack it again")


def _sum_is_right(header: bytes) -> bool:
    digits = header[148:156].strip(b" \0")
    octal = re.fullmatch(b"[0-7]+", digits) is not None
    return octal and int(digits, 8) == sum(header) - sum(header[148:156]) + 8 * 32


def _number(shard: str, field: bytes, position: int) -> int:
    if field[0] & 0x80:  # GNU: base 256, for sizes from 8 GB
        return int.from_bytes(field[1:], "big")
    digits = field.strip(b" \0") or b"0"
    if not digits.isdigit() or b"8" in digits or b"9" in digits:
        raise DamagedShard(f"{shard}: no size in the tar header at byte {position:,}; fetch or pack it again")
    return int(digits, 8)


def _name(header: bytes) -> str:
    name = header[:100].split(b"\0", 1)[0]
    if header[257:263] == b"ustar\0" and header[345]:
        name = header[345:500].split(b"\0", 1)[0] + b"/" + name
    return name.decode("utf-8", "backslashreplace")


def _pax(records: bytes, extended: _Extended) -> _Extended:
    """What a pax header says: records `LENGTH KEY=VALUE\\n`, LENGTH counting all of the record."""
    while records:
        length, _, rest = records.partition(b" ")
        if not length.isdigit() or int(length) <= len(length):
            break  # damaged; the names that follow are then the short ones
        key, _, value = rest[: int(length) - len(length) - 2].partition(b"=")
        if key in (b"path", b"GNU.sparse.name"):
            extended = extended._replace(name=value.decode("utf-8", "backslashreplace"))
        elif key == b"size" and value.isdigit():
            extended = extended._replace(size=int(value))
        if key.startswith(b"GNU.sparse."):
            extended = extended._replace(sparse=True)
        records = records[int(length) :]
    return extended
