"""The counter-based generator in unbounded Python integers, from the docstring of platform/augment/rng.py."""

_MASK = 2**64 - 1


def chain(*words: int) -> int:
    """64 bits that the words name."""
    state = 0
    for word in words:
        x = ((state ^ (word & _MASK)) + 0x9E3779B97F4A7C15) & _MASK
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
        x = (x ^ (x >> 27)) * 0x94D049BB133111EB & _MASK
        state = x ^ (x >> 31)
    return state


def uniform(*words: int) -> float:
    """In [0, 1): the top 53 bits."""
    return (chain(*words) >> 11) * 2.0**-53


def permutation(n: int, *words: int) -> list[int]:
    """0 ... n-1 sorted by the bits that the words and the number name."""
    return sorted(range(n), key=lambda i: chain(*words, i))
