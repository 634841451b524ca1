"""The members of a tar file by a scan of its headers, without reading what is in them.

POSIX.1-2001 (ustar and pax) and GNU tar, uncompressed. About three times as fast as `tarfile`.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from vergence.platform.errors import UserError

BLOCK = 512
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\x00": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_LINKS_AND_FOLDERS = b"123456"  # their size field, if any, is not followed by data


class DamagedShard(UserError):
    """A shard that cannot be read as a tar file."""


def members(path: Path) -> Iterator[tuple[str, int, int]]:
    """(name, offset of the data, size in bytes) of each regular file in the tar, in order.

    Raises DamagedShard, one line with the cure: empty, compressed, truncated, or no tar at all.
    """
    with path.open("rb", buffering=1 << 16) as file:
        size = os.fstat(file.fileno()).st_size
        _refuse_compressed(path, file.read(6), size)
        yield from _walk(path, file, size)


def _refuse_compressed(path: Path, start: bytes, size: int) -> None:
    if size == 0:
        raise DamagedShard(f"{path}: the file is empty (0 bytes); fetch or pack it again")
    for magic, kind in _COMPRESSED.items():
        if start.startswith(magic):
            raise DamagedShard(
                f"{path}: a {kind}-compressed tar cannot be read at random places; "
                "unpack it to a plain .tar (images do not compress anyway)"
            )


def _walk(path: Path, file: BinaryIO, end: int) -> Iterator[tuple[str, int, int]]:
    position, long_name, long_size = 0, None, None
    while True:
        file.seek(position)
        header = file.read(BLOCK)
        if len(header) < BLOCK:
            raise _truncated(path, f"it ends at byte {end:,} without the end mark of a tar")
        if header[0] == 0 and not header.strip(b"\0"):
            return
        if header[257:262] != b"ustar" and not _sum_is_right(header):
            raise DamagedShard(f"{path}: no tar header at byte {position:,}; fetch or pack it again")
        kind, offset = header[156:157], position + BLOCK
        size = _number(path, header[124:136], position)
        if long_size is not None and kind not in b"xgLK":
            size = long_size
        payload = 0 if kind in _LINKS_AND_FOLDERS else size
        if offset + payload > end:
            name = long_name or _name(header)
            raise _truncated(path, f"member {name} ends at byte {offset + payload:,}, the file at {end:,}")
        position = offset + -(-payload // BLOCK) * BLOCK
        if kind == b"x":
            long_name, long_size = _pax(file.read(size), long_name, long_size)
        elif kind == b"L":
            long_name = file.read(size).rstrip(b"\0").decode("utf-8", "backslashreplace")
        elif kind not in b"gK":
            if kind in b"0\x007":
                yield long_name or _name(header), offset, size
            long_name = long_size = None


def _truncated(path: Path, detail: str) -> DamagedShard:
    return DamagedShard(f"{path}: the tar is truncated ({detail}); fetch or pack it again")


def _sum_is_right(header: bytes) -> bool:
    """For tars older than POSIX, which have no magic word."""
    digits = header[148:156].strip(b" \0")
    octal = re.fullmatch(b"[0-7]+", digits) is not None
    return octal and int(digits, 8) == sum(header) - sum(header[148:156]) + 8 * 32


def _number(path: Path, field: bytes, position: int) -> int:
    if field[0] & 0x80:  # GNU: base 256, for sizes from 8 GB
        return int.from_bytes(field[1:], "big")
    digits = field.strip(b" \0") or b"0"
    if not digits.isdigit() or b"8" in digits or b"9" in digits:
        raise DamagedShard(f"{path}: no size in the tar header at byte {position:,}; fetch or pack it again")
    return int(digits, 8)


def _name(header: bytes) -> str:
    name = header[:100].split(b"\0", 1)[0]
    if header[257:263] == b"ustar\0" and header[345]:
        name = header[345:500].split(b"\0", 1)[0] + b"/" + name
    return name.decode("utf-8", "backslashreplace")


def _pax(records: bytes, name: str | None, size: int | None) -> tuple[str | None, int | None]:
    """path and size of a pax header: records `LENGTH KEY=VALUE\\n`, LENGTH counting all of the record."""
    while records:
        length, _, rest = records.partition(b" ")
        if not length.isdigit() or int(length) <= len(length):
            break  # damaged; the names that follow are then the short ones
        key, _, value = rest[: int(length) - len(length) - 2].partition(b"=")
        if key == b"path":
            name = value.decode("utf-8", "backslashreplace")
        elif key == b"size" and value.isdigit():
            size = int(value)
        records = records[int(length) :]
    return name, size
