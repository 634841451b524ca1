"""In which order the training samples of an epoch come: a pure function of (their number, seed, epoch).

full: any order of all samples is as likely as any other. A store that answers in milliseconds is then asked once for
each sample.

chunk: samples that lie side by side are read at once. The set is cut into chunks of consecutive samples, every window
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
    chunk: PositiveInt = Field(64, description="consecutive samples of a chunk (chunk)")
    window: PositiveInt | Literal["auto"] = Field(
        "auto",
        description=f"chunks that are shuffled together, and held in memory (chunk); auto: of {WINDOW_BATCHES} batches",
    )

    def windows(self, num: int, global_batch: int) -> int:
        """How many windows an epoch of `num` samples has."""
        chunks = -(-num // self.chunk)
        held = -(-WINDOW_BATCHES * global_batch // self.chunk) if self.window == "auto" else self.window
        return max(1, -(-chunks // held))

    def positions(self, num: int, global_batch: int, seed: int, epoch: int) -> np.ndarray:
        """0 ... num-1 in the order of this epoch, int64 (num,)."""
        if self.kind == "full":
            return rng.permutation(num, _ORDER, seed, epoch)
        windows, places = self.windows(num, global_batch), np.arange(num)
        window = _windows(-(-num // self.chunk), windows, seed, epoch)[places // self.chunk]
        return np.lexsort((rng.mix(_WINDOW, seed, epoch, places), window)).astype(np.int64, copy=False)


FULL = Order()


def _windows(chunks: int, windows: int, seed: int, epoch: int) -> np.ndarray:
    """The window of each chunk, int64 (chunks,): a permutation of all windows for every run of as many chunks."""
    runs = -(-chunks // windows)
    keys = rng.mix(_CHUNKS, seed, epoch, np.arange(runs * windows)).reshape(runs, windows)
    return np.argsort(np.argsort(keys, axis=1), axis=1).reshape(-1)[:chunks]
