"""Random numbers that are hashes: the same for a sample on any rank, in any micro-batch, pass or resumed run."""

import torch
from torch import Tensor

_GOLDEN, _MIX_1, _MIX_2 = (
    -0x61C8864680B583EB,
    -0x40A7B892E31B1A47,
    -0x6B2FB644ECCEEE15,
)  # splitmix64, as int64
_POSITIVE = 0x7FFFFFFFFFFFFFFF


def words(seed: Tensor, ids: Tensor, count: int, progress: float, stream: int = 0) -> Tensor:
    """(b, count) int64 >= 0: a hash of the seed, each of `ids`, and progress.

    So that they depend neither on ranks and micro-batches, nor on what was drawn before.

    Args:
        seed: 0-d int64, part of the method's state.
        ids: (b,) int64 sample ids.
        count: numbers for each sample.
        progress: of the step, in [0, 1).
        stream: another one for each use within a step.
    """
    moment = int(progress * 2**52)
    keys = _mix(_mix(seed + moment) ^ ids)  # (b,)
    place = torch.arange(1, count + 1, device=ids.device) + (stream << 40)
    return _mix(keys[:, None] + place * _GOLDEN) & _POSITIVE


def uniform(seed: Tensor, ids: Tensor, count: int, progress: float, stream: int = 0) -> Tensor:
    """(b, count) float64 in [0, 1), as `words`."""
    return (words(seed, ids, count, progress, stream) >> 10).double() / 2**53


def _mix(x: Tensor) -> Tensor:
    """The finaliser of splitmix64 on int64: each bit of the result depends on every bit of x."""
    x = (x ^ _shifted(x, 30)) * _MIX_1
    x = (x ^ _shifted(x, 27)) * _MIX_2
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, bits: int) -> Tensor:
    """x >> bits with zeros coming in."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
