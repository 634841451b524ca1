"""Features that were computed once, on disk: parts of a few thousand samples, so that an interruption costs one of them.

It is only a cache: what cannot be read is computed again, what cannot be written (a full disk, a folder of somebody
else) is not kept.
"""

import contextlib
import hashlib
import json
import os
import shutil
import time
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vergence.platform.files import replacing

ABOUT = "about.json"
UNUSED_S = 30 * 24 * 3600.0  # without a use, after which features are deleted


class Part(NamedTuple):
    """ids: (n,) int64, those that could be read.  rows: (n, d) float32."""

    ids: NDArray[np.int64]
    rows: NDArray[np.float32]


class FeatureCache:
    """The parts of one encoder's features of one set of samples."""

    def __init__(self, cache: Path, about: dict[str, object]) -> None:
        """about: all that the features depend on; anything else in it gives them another place."""
        text = json.dumps(about, sort_keys=True)
        self.folder = cache.absolute() / hashlib.sha256(text.encode()).hexdigest()[:24]
        with contextlib.suppress(OSError):
            if not self.folder.exists():
                _tidy(cache)
                self.folder.mkdir(parents=True)
                (self.folder / ABOUT).write_text(text + "\n", encoding="utf-8")
            os.utime(self.folder)  # it stays for another month

    def read(self, number: int) -> Part | None:
        """A part as it was written; None if it is not there or not whole."""
        try:
            with self._file(number).open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                return Part(arrays["ids"], arrays["rows"])
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return None

    def write(self, number: int, part: Part) -> None:
        with (
            contextlib.suppress(OSError),
            replacing(self._file(number)) as temporary,
            temporary.open("wb") as file,
        ):
            np.savez(file, ids=part.ids, rows=part.rows)

    def _file(self, number: int) -> Path:
        return self.folder / f"{number:06d}.npz"


def _tidy(cache: Path) -> None:
    """Delete features, and nothing else, that nobody has used for a month."""
    for about in cache.glob(f"*/{ABOUT}"):
        if time.time() - about.parent.stat().st_mtime > UNUSED_S:
            shutil.rmtree(about.parent, ignore_errors=True)
