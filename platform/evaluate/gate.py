"""Whether one encoder is better than another on the same test images: a pure gate."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 10_000
LEVEL = 0.95  # of the interval


class Verdict(NamedTuple):
    """candidate, champion: top-1.  low, high: ends of the interval of their difference.  margin: that low must exceed."""

    candidate: float
    champion: float
    low: float
    high: float
    margin: float

    @property
    def difference(self) -> float:
        return self.candidate - self.champion

    @property
    def passes(self) -> bool:
        return self.low > self.margin

    @property
    def words(self) -> str:
        against = f"{self.candidate:.4f} against {self.champion:.4f}, {self.difference:+.4f}"
        is_above = "above" if self.passes else "not above"
        return f"{against} ({LEVEL:.0%} interval {self.low:+.4f} to {self.high:+.4f}), {is_above} the margin {self.margin:g}"


def compare(candidate: NDArray[np.bool_], champion: NDArray[np.bool_], margin: float) -> Verdict:
    """The gate: the candidate passes if it is better by more than `margin`, at the lower end of the interval.

    The interval is the percentile interval of the paired bootstrap over test images (Efron and Tibshirani 1993, chapter
    13): both encoders see the same resample. A resample of n differences of -1, 0 and 1 is a multinomial draw of how many
    there are of each, so 10,000 of them cost nothing.

    Args:
        candidate, champion: (n,) whether each test image got its class, the same images in the same order.
        margin: in top-1, -1 to 1; below 0 a candidate may be that much worse.
    """
    assert candidate.shape == champion.shape, "the same images"
    differences = candidate.astype(np.int8) - champion.astype(np.int8)
    n = len(differences)
    shares = [np.count_nonzero(differences == value) / n for value in (-1, 0, 1)]
    lost, _, won = np.random.default_rng(0).multinomial(n, shares, size=RESAMPLES).T
    tail = (1 - LEVEL) / 2
    low, high = np.quantile((won - lost) / n, (tail, 1 - tail), method="inverted_cdf")
    return Verdict(float(candidate.mean()), float(champion.mean()), float(low), float(high), margin)
