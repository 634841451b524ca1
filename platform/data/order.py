"""In which order the training samples of an epoch come: a pure function of (their ids, seed, epoch).

full: any order of all samples is as likely as any other. A store that answers in milliseconds is then asked once for
each sample.

chunk: samples that lie side by side are read at once. The set is cut into chunks of consecutive ids, every window
takes chunks from all over the set, and its samples are in random order: of each run of as many chunks as there are
windows, every window gets one, drawn anew in each epoch. So a window looks like the whole set even where shards are
sorted by class: drawn without regard to their places, the 192 chunks of a window would have made the counts of classes
in a batch of 256 vary twice as much.
"""

from typing import Literal

import numpy as np
from pydantic import BaseModel, Field, PositiveInt

from vergence.platform.augment import rng

# "PLAN", "CHNK", "WNDW": draws for different uses never meet
_ORDER, _CHUNKS, _WINDOW = 0x504C414E, 0x43484E4B, 0x574E4457
WINDOW_BATCHES = 48  # of a window by default: with ten classes, sorted, counts in a batch vary within 5 % as in a full order


class Order(BaseModel, frozen=True, extra="forbid", strict=True):
    kind: Literal["full", "chunk"] = Field(
        "full", description="full: any order of all samples; chunk: neighbours are read together"
    )
    chunk: PositiveInt = Field(
        64, description="consecutive samples of a chunk, and of a piece that nodes keep of shards in a store"
    )
    window: PositiveInt | Literal["auto"] = Field(
        "auto",
        description=f"chunks that are shuffled together, and kept on the node (chunk); auto: of {WINDOW_BATCHES} batches",
    )

    def arrange(self, ids: np.ndarray, global_batch: int, seed: int, epoch: int) -> np.ndarray:
        """The ids, int64 (n,) ascending, in the order of this epoch."""
        if self.kind == "full":
            return ids[rng.permutation(len(ids), _ORDER, seed, epoch)]
        window = self._window_of(ids, global_batch, seed, epoch)
        return ids[np.lexsort((rng.mix(_WINDOW, seed, epoch, ids), window))]

    def window_starts(self, ids: np.ndarray, global_batch: int, seed: int, epoch: int) -> np.ndarray:
        """Positions at which the windows of this epoch begin, and n: int64 (windows + 1,)."""
        if self.kind == "full":
            return np.array([0, len(ids)])
        sizes = np.bincount(self._window_of(ids, global_batch, seed, epoch))
        return np.concatenate([[0], np.cumsum(sizes)])

    def _window_of(self, ids: np.ndarray, global_batch: int, seed: int, epoch: int) -> np.ndarray:
        """int64 (n,): of each run of as many chunks as there are windows, every window has one."""
        chunk_of = ids // self.chunk
        chunks = int(chunk_of[-1]) + 1
        held = -(-WINDOW_BATCHES * global_batch // self.chunk) if self.window == "auto" else self.window
        windows = -(-chunks // held)
        runs = -(-chunks // windows)
        keys = rng.mix(_CHUNKS, seed, epoch, np.arange(runs * windows)).reshape(runs, windows)
        window_of_chunk = np.argsort(np.argsort(keys, axis=1), axis=1).reshape(-1)
        return np.asarray(window_of_chunk[chunk_of])


FULL = Order()
