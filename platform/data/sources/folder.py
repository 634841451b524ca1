"""A folder of images, or of sounds: bytes are copied, the first folder of a path is the class."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from vergence.platform.data.formats import IMAGE_EXTENSIONS
from vergence.platform.data.sources.source import Packed, digest, numbered, only_none, unique_keys
from vergence.platform.data.walk import audio_files, few, image_files
from vergence.platform.errors import UserError
from vergence.platform.text import printable


class Folder:
    """Images below a folder, in the order of their paths; class = the first folder, if all images have one.

    Sounds (.wav, .flac, .ogg) where there is no image.
    """

    def __init__(self, root: Path, label: str | None, known_classes: Sequence[str] | None) -> None:
        self.root = root
        self.files, left_out = image_files(root)
        if not self.files and (sounds := audio_files(root))[0]:
            self.files, left_out = sounds
        self.num, self.notes = len(self.files), left_out.lines()
        if not self.files:
            hint = "; it holds parquet files: name them by a glob" if any(root.glob("**/*.parquet")) else ""
            lines = "".join(f"; {line}" for line in self.notes)
            raise UserError(
                f"{root}: no images below this folder (.{', .'.join(IMAGE_EXTENSIONS)}){hint}{lines}"
            )
        tops = [printable(image.path.partition("/")[0]) for image in self.files]
        wanted = only_none(label, str(root), "the first folder of a path is the class")
        self.classes = numbered(tops, known_classes) if wanted and self._all_in_folders() else None
        numbers = {name: number for number, name in enumerate(self.classes or [])}
        self.labels = [numbers.get(top) for top in tops]
        self.keys = unique_keys([image.stem for image in self.files])
        sizes = [(image.path, os.path.getsize(root / image.path)) for image in self.files]
        self.fingerprint = digest(sizes, self.classes)

    def _all_in_folders(self) -> bool:
        """Whether folders can be classes; if images beside them are the reason why not, a note says so."""
        direct = [image.path for image in self.files if "/" not in image.path]
        if 0 < len(direct) < self.num:
            self.notes.append(
                f"no classes: {len(direct):,} of {self.num:,} images {'lies' if len(direct) == 1 else 'lie'} directly "
                f"in {self.root} ({few(direct)}); move what lies there into a class folder, or away, and the "
                "folders are classes"
            )
        return not direct

    def samples(self, start: int, stop: int) -> Iterator[Packed]:
        for i in range(start, stop):
            data = (self.root / self.files[i].path).read_bytes()
            yield Packed(self.keys[i], self.files[i].extension, data, self.labels[i])
