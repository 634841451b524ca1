"""Counter-based random numbers: every draw is a pure function of the words that name it.

The generator is named `splitmix64-chain` and pinned by golden values in the tests, because numpy promises
no stability of its own streams. With f the output function of SplitMix64 (Steele, Lea and Flood 2014,
"Fast splittable pseudorandom number generators", finaliser of D. Stafford's variant 13),
    f(x) = y ^ (y >> 31),  y = (z ^ (z >> 27)) * 0x94D049BB133111EB,  z = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9,
a chain of words w_1 ... w_k is absorbed by
    h_0 = 0,  h_i = f((h_{i-1} ^ w_i) + GAMMA),  GAMMA = 0x9E3779B97F4A7C15,  all modulo 2**64.
f is a bijection, so for fixed other words h is a bijection of each single word: counters never collide.
"""

import numpy as np
from numpy.typing import NDArray

Words = int | np.integer | NDArray[np.integer]  # negative integers count modulo 2**64

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_ROUNDS = ((np.uint64(30), np.uint64(0xBF58476D1CE4E5B9)), (np.uint64(27), np.uint64(0x94D049BB133111EB)))


def _word(word: Words) -> NDArray[np.uint64]:
    if isinstance(word, int):
        return np.array(word % 2**64, dtype=np.uint64)
    array = np.asarray(word)
    if array.dtype.kind not in "iu":
        raise TypeError(f"words are integers, got an array of {array.dtype}")
    return array.astype(np.int64).view(np.uint64) if array.dtype.kind == "i" else array.astype(np.uint64)


def mix(*words: Words) -> NDArray[np.uint64]:
    """64 uniform bits for each tuple of words.

    Args:
        words: integers or integer arrays, broadcast together; their order matters.
    Returns:
        uint64 array of the broadcast shape (0-d when all words are scalars).
    """
    state: NDArray[np.uint64] = np.zeros((), np.uint64)
    for word in words:
        # out-of-place once (it broadcasts), in place afterwards; arrays of at least one dimension wrap silently
        state = np.atleast_1d(np.bitwise_xor(state, _word(word)))
        state += _GAMMA
        for shift, factor in _ROUNDS:
            state ^= state >> shift
            state *= factor
        state ^= state >> np.uint64(31)
    return state.reshape(np.broadcast_shapes(*(np.shape(word) for word in words)))


def uniform(*words: Words) -> NDArray[np.float64]:
    """float64 in [0, 1) for each tuple of words: the top 53 bits of `mix`, times 2**-53."""
    return np.asarray((mix(*words) >> np.uint64(11)) * 2.0**-53)


def permutation(n: int, *words: Words) -> NDArray[np.int64]:
    """A permutation of 0 ... n-1, (n,) int64: the argsort of mix(*words, 0 ... n-1), words being scalars.

    The n keys are distinct (mix is a bijection of its last word), so the order does not depend on the sort.
    """
    return np.argsort(mix(*words, np.arange(n))).astype(np.int64, copy=False)
