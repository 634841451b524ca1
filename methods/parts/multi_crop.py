"""Which views of an image are compared: a full-size view with every other one (SwAV, arXiv:2006.09882)."""


def directed(num_large: int, num_views: int) -> list[tuple[int, int]]:
    """(t, s): full-size view t as the target of every other view s."""
    return [(t, s) for t in range(num_large) for s in range(num_views) if s != t]


def unordered(num_large: int, num_views: int) -> list[tuple[int, int]]:
    """(t, s): each pair of a full-size view and another one, once."""
    return [(t, s) for t in range(num_large) for s in range(t + 1, num_views)]
