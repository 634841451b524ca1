"""The order of samples: a pure function of (number of samples, holdout, seed, global batch, kind of order) (DESIGN C4).

The training ids of an epoch are ordered by order.py with the counter-based generator of augment/rng.py; global batch b
is `epoch(e)[b*G : (b+1)*G]`, rank r of R takes the r-th contiguous slice of G/R of it, and the tail
`epoch(e)[B*G:]` is left out (another one each epoch).

Holdout rule `drawn-v1`, for a share h = p/q: run i of the ids is ceil(i/h) ... ceil((i+1)/h) - 1, so id j lies in
run floor(j h). One id of each whole run is held out, drawn from the run's number alone: classes or frames that
follow each other periodically are held out as often as any other. All is integer arithmetic.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import cache, lru_cache

import numpy as np
from numpy.typing import ArrayLike

from vergence.platform.augment import rng
from vergence.platform.data.order import FULL, Order
from vergence.platform.errors import UserError

HOLDOUT_RULE = "drawn-v1"  # kept with every commit: under another rule a run would train on its holdout

# "PROB", "HOLD", "MONI": draws for different uses never meet
_PROBE, _HELD, _MONITORED = 0x50524F42, 0x484F4C44, 0x4D4F4E49


@dataclass(frozen=True)
class Plan:
    """Which sample stands where.

    num_samples: samples in the index, N.  holdout: share h kept for the monitor, 0 to 0.5: floor(N h) samples,
    whatever the seed.  global_batch: samples a step (G).
    Raises UserError: fewer training samples than one global batch.
    """

    num_samples: int
    holdout: float
    seed: int
    global_batch: int
    order: Order = FULL

    def __post_init__(self) -> None:
        if not (self.holdout == 0 or 1e-6 <= self.holdout <= 0.5):
            raise UserError(f"data.holdout={self.holdout:g} is neither 0 nor between 0.000001 and 0.5")
        if self.num_training < self.global_batch:
            raise UserError(
                f"batch.global={self.global_batch} is more than the {self.num_training} training samples "
                f"(of {self.num_samples}, holdout {self.holdout:g}); the largest that fits is {self.num_training}"
            )

    @property
    def num_holdout(self) -> int:
        p, q = _ratio(self.holdout)
        return self.num_samples * p // q

    @property
    def num_training(self) -> int:
        return self.num_samples - self.num_holdout

    @property
    def batches_per_epoch(self) -> int:
        """B, the global batches of an epoch."""
        return self.num_training // self.global_batch

    @property
    def num_windows(self) -> int:
        """Windows of an epoch."""
        return len(_epoch(self, 0)[1]) - 1

    def training_ids(self, positions: ArrayLike) -> np.ndarray:
        """Sample ids, int64, of positions 0 ... num_training-1 among the training samples."""
        positions, (p, q) = np.asarray(positions, np.int64), _ratio(self.holdout)
        if not self.num_holdout:
            return positions
        run = np.minimum(positions * p // (q - p), self.num_holdout)  # a run of n ids has n - 1 for training
        ids = positions + run  # one was held out in each run before
        return ids + ((ids >= self._held(run)) & (run < self.num_holdout))

    def training_positions(self, ids: ArrayLike) -> np.ndarray:
        """The inverse of `training_ids`, int64; -1 for an id that is held out."""
        ids, (p, q) = np.asarray(ids, np.int64), _ratio(self.holdout)
        if not self.num_holdout:
            return ids
        run = np.minimum(ids * p // q, self.num_holdout)
        held, whole = self._held(run), run < self.num_holdout
        return np.where(whole & (ids == held), -1, ids - run - (whole & (ids > held)))

    def holdout_ids(self, limit: int = 5000) -> np.ndarray:
        """At most `limit` held-out ids, int64, ascending: all, or one drawn in each of `limit` equal parts."""
        count = min(limit, self.num_holdout)
        if not count:
            return np.empty(0, np.int64)
        starts = np.arange(count + 1) * self.num_holdout // count
        return self._held(_drawn(_MONITORED, np.arange(count), starts[:-1], starts[1:]))

    def _held(self, run: np.ndarray) -> np.ndarray:
        """The id held out in each run, int64; meaningless from run num_holdout on, which is not whole."""
        p, q = _ratio(self.holdout)
        return _drawn(_HELD, run, -(-run * q // p), -(-(run + 1) * q // p))

    def epoch(self, epoch: int) -> np.ndarray:
        """All training ids in the order of this epoch: int64 (num_training,), read-only, the last two cached."""
        return _epoch(self, epoch)[0]

    def coming(self, epoch: int, start: int, stop: int, is_last: bool) -> np.ndarray:
        """Ids to fetch while batches start ... stop-1 of an epoch are read: as large a part of the window that follows.

        int64. The window behind the last one is the first of the next epoch; is_last: there is none.
        """
        ids, starts = _epoch(self, epoch)
        found = [ids[:0]]
        ends = np.minimum(
            starts[1:], self.batches_per_epoch * self.global_batch
        )  # the rest of the epoch is left out
        for window, (begin, end) in enumerate(zip(starts[:-1].tolist(), ends.tolist())):
            first, last = (min(max(batch * self.global_batch, begin), end) for batch in (start, stop))
            if first >= last:
                continue
            if window + 2 < len(starts):
                following = ids[starts[window + 1] : starts[window + 2]]
            elif is_last:
                break
            else:
                others, other_starts = _epoch(self, epoch + 1)
                following = others[: other_starts[1]]
            part = [(place - begin) * len(following) // (end - begin) for place in (first, last)]
            found.append(np.sort(following)[part[0] : part[1]])
        return np.concatenate(found)

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


@cache
def _ratio(holdout: float) -> tuple[int, int]:
    """The share as p/q: the decimal as it is written, 0.1 as 1/10, to nine digits."""
    share = Fraction(repr(holdout)).limit_denominator(10**9)  # N * 10**9 stays an int64
    return share.numerator, share.denominator


def _drawn(use: int, numbers: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """One of start ... end-1, int64, for each number; the same for every seed."""
    return starts + (rng.mix(use, numbers) % (ends - starts).astype(np.uint64)).astype(np.int64)


@lru_cache(maxsize=2)
def _epoch(plan: Plan, epoch: int) -> tuple[np.ndarray, np.ndarray]:
    """All training ids in the order of an epoch, and where its windows begin; read-only."""
    training = plan.training_ids(np.arange(plan.num_training))
    how = plan.global_batch, plan.seed, epoch
    found = plan.order.arrange(training, *how), plan.order.window_starts(training, *how)
    for array in found:
        array.flags.writeable = False
    return found
