"""The source that a user's SRC names."""

from collections.abc import Sequence
from pathlib import Path

from vergence.platform.data.pattern import match
from vergence.platform.data.sources.folder import Folder
from vergence.platform.data.sources.parquet import Parquet
from vergence.platform.data.sources.pictures import open_pictures
from vergence.platform.data.sources.source import Source
from vergence.platform.errors import UserError


def open_source(
    src: str, size: int | None, label: str | None = None, known_classes: Sequence[str] | None = None
) -> Source:
    """Open a source, and look at all of it but the images.

    Args:
        src: folder, parquet file or pattern of them, `sklearn:digits?...`, `torchvision:NAME?...`.
        size: pixels of a side; only for sources without bytes of their own.
        label: a parquet column of classes, `none` for no classes; default: column `label`, if it is there.
        known_classes: a source keeps these labels if it has no other classes.
    Raises UserError.
    """
    kind, _, spec = src.partition(":")
    if kind in ("sklearn", "torchvision"):
        return open_pictures(kind, spec, size, label)
    if size is not None:
        raise UserError(f"--size {size}: {src} has image files; their bytes are copied, never resized")
    path = Path(src).expanduser()
    if path.is_dir():
        return Folder(path, label, known_classes)
    files = [Path(name) for names in match(src).values() for name in names]
    if not files:
        raise UserError(f"{src}: no such file, folder or glob of parquet files")
    for file in files:
        if file.suffix.lower() != ".parquet" or not file.is_file():
            raise UserError(f"{file}: neither a folder of images nor a .parquet file")
    return Parquet(files, label, known_classes)
