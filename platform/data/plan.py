"""The order of samples: a pure function of (number of samples, holdout, seed, global batch) (DESIGN C4).

The training ids of an epoch are permuted by the counter-based generator of augment/rng.py; global batch b
is `epoch(e)[b*G : (b+1)*G]`, rank r of R takes the r-th contiguous slice of G/R of it, and the tail
`epoch(e)[B*G:]` is left out (another one each epoch).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from vergence.platform.augment import rng
from vergence.platform.errors import UserError

_ORDER, _PROBE = 0x504C414E, 0x50524F42  # "PLAN", "PROB": draws for different uses never meet


@dataclass(frozen=True)
class Plan:
    """Which sample stands where.

    num_samples: samples in the index.  holdout: share kept for the monitor, 0 to 0.5; with k = round(1/holdout)
    the ids with id % k == k-1 are held out, whatever the seed.  global_batch: samples a step (G).
    Raises UserError: fewer training samples than one global batch.
    """

    num_samples: int
    holdout: float
    seed: int
    global_batch: int

    def __post_init__(self) -> None:
        if not (self.holdout == 0 or 1e-6 <= self.holdout <= 0.5):
            raise UserError(f"data.holdout={self.holdout:g} is neither 0 nor between 0.000001 and 0.5")
        if self.num_training < self.global_batch:
            raise UserError(
                f"batch.global={self.global_batch} is more than the {self.num_training} training samples "
                f"(of {self.num_samples}, holdout {self.holdout:g}); the largest that fits is {self.num_training}"
            )

    @property
    def _every(self) -> int | None:
        """k: one id in k is held out; None without a holdout."""
        return round(1 / self.holdout) if self.holdout else None

    @property
    def num_holdout(self) -> int:
        return self.num_samples // self._every if self._every else 0

    @property
    def num_training(self) -> int:
        return self.num_samples - self.num_holdout

    @property
    def batches_per_epoch(self) -> int:
        """B, the global batches of an epoch."""
        return self.num_training // self.global_batch

    def training_ids(self, positions: np.ndarray) -> np.ndarray:
        """Sample ids, int64, of positions 0 ... num_training-1 among the training samples."""
        positions = np.asarray(positions, np.int64)
        return positions + positions // (self._every - 1) if self._every else positions

    def holdout_ids(self, limit: int = 5000) -> np.ndarray:
        """At most `limit` held-out ids, int64, ascending and evenly spaced."""
        count = min(limit, self.num_holdout)
        if not self._every or not count:
            return np.empty(0, np.int64)
        return np.arange(count) * self.num_holdout // count * self._every + self._every - 1

    def epoch(self, epoch: int) -> np.ndarray:
        """All training ids in the order of this epoch: int64 (num_training,), read-only, the last two cached."""
        return _epoch(self, epoch)

    def batch_ids(self, step: int) -> np.ndarray:
        """Ids of the global batch consumed at `step`, counted from 0 over the whole run: int64 (G,)."""
        epoch, batch = divmod(step, self.batches_per_epoch)
        return self.epoch(epoch)[batch * self.global_batch : (batch + 1) * self.global_batch]

    def rank_ids(self, step: int, rank: int, world_size: int) -> np.ndarray:
        """Ids of one rank's contiguous share of the global batch: int64 (G / world_size,)."""
        assert self.global_batch % world_size == 0, "shares are equal"
        share = self.global_batch // world_size
        return self.batch_ids(step)[rank * share : (rank + 1) * share]

    def candidates(self, epoch: int, position: int) -> Iterator[int]:
        """Ids to try, in this order, in place of a bad sample at `position` of the epoch.

        First the unused tail of the epoch from a drawn place on, wrapping, then all of the epoch likewise.
        """
        order, draw = self.epoch(epoch), int(rng.mix(_PROBE, self.seed, epoch, position))
        for ids in (order[self.batches_per_epoch * self.global_batch :], order):
            for step in range(len(ids)):
                yield int(ids[(draw + step) % len(ids)])


@lru_cache(maxsize=2)
def _epoch(plan: Plan, epoch: int) -> np.ndarray:
    ids = plan.training_ids(rng.permutation(plan.num_training, _ORDER, plan.seed, epoch))
    ids.flags.writeable = False
    return ids
