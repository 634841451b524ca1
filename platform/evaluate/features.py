"""Embeddings of the samples of an index, computed once: in batches, in parts that are kept, on any device."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from vergence.platform.data.decode import MAX_PIXELS
from vergence.platform.data.index import Index
from vergence.platform.data.progress import Bar
from vergence.platform.encoders.encoder import CPU, Embedder
from vergence.platform.encoders.images import shard_source, stream_images
from vergence.platform.encoders.resize import RULE
from vergence.platform.evaluate.feature_cache import FeatureCache, Part

PART = 2048  # samples; a multiple of the batch of 256, so that batches do not depend on what is kept
VERSION = 1  # of how features are made; another one finds nothing of the old

Ids = NDArray[np.int64]


class Features(NamedTuple):
    """ids: (n,) int64, those of the samples asked for that can be read.  rows: (n, dim) float32, not normalised."""

    ids: Ids
    rows: NDArray[np.float32]


def features(
    encoders: Sequence[Embedder],
    index: Index,
    ids: Ids | None = None,
    *,
    device: torch.device = CPU,
    threads: int,
    cache: Path | None = None,
    progress: str | None = None,
) -> list[Features]:
    """What each encoder makes of samples of an index, with one reading of the images for all.

    Args:
        encoders: of one input size; LoadedEncoders, or `ModuleEncoder.of` a module.
        ids: (n,) int64; default: all samples.
        device: where the encoders run.  threads: how many read and resize images, with a bounded number ahead.
        cache: folder in which parts are kept under the digests of encoder and data, and where an interrupted call goes
            on; another kind of device, which rounds otherwise, finds nothing of the first.
        progress: draw a bar with this text on stderr if it takes more than two seconds.
    Raises OSError: the storage cannot be read; VergenceError: shards have changed since they were indexed.
    """
    [size] = {encoder.size for encoder in encoders}
    ids = np.arange(len(index), dtype=np.int64) if ids is None else ids
    works = [_Work(encoder.to(device), index, ids, device, cache) for encoder in encoders]
    source = shard_source(index, MAX_PIXELS)
    with Bar(progress or "", len(ids), enabled=progress is not None) as advance:
        for number, start in enumerate(range(0, len(ids), PART)):
            wanted = ids[start : start + PART]
            missing = [work for work in works if not work.take(number)]
            if not missing:
                advance(len(wanted))
                continue
            for some, images in stream_images(source, wanted, size, threads=threads, progress=advance):
                for work in missing:
                    work.embed(some, images)
            for work in missing:
                work.keep(number)
    return [work.done() for work in works]


class _Work:
    """The features of one encoder as they come in."""

    def __init__(
        self, encoder: Embedder, index: Index, ids: Ids, device: torch.device, cache: Path | None
    ) -> None:
        self.encoder, self.num_good = encoder, 0
        # whole from the start: joining a list would need twice the memory
        self._ids, self._rows = np.empty(len(ids), np.int64), np.empty((len(ids), encoder.dim), np.float32)
        self._part = 0  # where the part in hand begins
        about = {
            "version": VERSION,
            "encoder": encoder.digest,
            "size": encoder.size,
            "rule": RULE,
            "precision": "float32",
            "device": device.type,
            "data": index.digest,
            # the digest does not see an edit that keeps every size
            "modified": index.shard_versions,
            "ids": hashlib.sha256(ids.astype("<i8").tobytes()).hexdigest(),
        }
        self._cache = FeatureCache(cache, about) if cache is not None and encoder.digest else None

    def take(self, number: int) -> bool:
        """Whether the part is kept, and now here."""
        self._part = self.num_good
        part = self._cache.read(number) if self._cache else None
        if part is not None:
            self._add(part)
        return part is not None

    def embed(self, ids: Ids, images: NDArray[np.uint8]) -> None:
        self._add(Part(ids, self.encoder(images)))

    def keep(self, number: int) -> None:
        """The part in hand is whole."""
        if self._cache:
            new = slice(self._part, self.num_good)
            self._cache.write(number, Part(self._ids[new], self._rows[new]))

    def done(self) -> Features:
        return Features(self._ids[: self.num_good], self._rows[: self.num_good])

    def _add(self, part: Part) -> None:
        new = slice(self.num_good, self.num_good + len(part.ids))
        self._ids[new], self._rows[new] = part
        self.num_good = new.stop
