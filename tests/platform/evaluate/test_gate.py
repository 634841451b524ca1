"""The gate: its interval against a bootstrap by hand, and what it lets pass."""

import numpy as np
import pytest
from numpy.typing import NDArray

from vergence.platform.evaluate.gate import compare


def answers(seed: int, n: int, won: int, lost: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Of n images candidate and champion answer alike but for some that only one of them gets right."""
    rng = np.random.default_rng(seed)
    champion = rng.random(n) < 0.6
    order = rng.permutation(n)
    candidate = champion.copy()
    candidate[order[:won]], champion[order[:won]] = True, False
    candidate[order[won : won + lost]], champion[order[won : won + lost]] = False, True
    return candidate, champion


def test_interval_is_that_of_images_drawn_with_both_answers() -> None:
    candidate, champion = answers(0, n=400, won=40, lost=16)
    verdict = compare(candidate, champion, 0.0)
    rng = np.random.default_rng(1)
    drawn = rng.integers(0, 400, (20_000, 400))
    differences = candidate[drawn].mean(axis=1) - champion[drawn].mean(axis=1)
    low, high = np.quantile(differences, (0.025, 0.975))
    assert verdict.low == pytest.approx(low, abs=2.6 / 400)
    assert verdict.high == pytest.approx(high, abs=2.6 / 400)
    assert verdict.difference == pytest.approx(24 / 400)
    unpaired = rng.permutation(candidate)  # the same figures of other images: much wider
    assert verdict.high - verdict.low < 0.6 * np.ptp(compare(unpaired, champion, 0.0)[2:4])


def test_only_what_is_better_by_more_than_the_margin_passes() -> None:
    verdict = compare(*answers(0, n=2000, won=120, lost=20), margin=0.0)
    assert verdict.passes
    assert 0 < verdict.low < verdict.difference < verdict.high
    assert not verdict._replace(margin=verdict.low).passes  # at the margin is not above it
    assert not compare(*answers(0, n=2000, won=120, lost=20), margin=0.045).passes
    assert not compare(
        *answers(0, n=2000, won=21, lost=20), margin=0.0
    ).passes  # better, by luck as likely as not
    worse = answers(0, n=2000, won=20, lost=40)
    assert not compare(*worse, margin=0.0).passes
    assert compare(*worse, margin=-0.05).passes  # it may be that much worse


def test_equal_answers_do_not_pass_and_the_words_say_so() -> None:
    _, same = answers(0, n=50, won=0, lost=0)
    verdict = compare(same, same, 0.0)
    assert (verdict.low, verdict.high, verdict.passes) == (0.0, 0.0, False)
    assert verdict.words.endswith("+0.0000 (95% interval +0.0000 to +0.0000), not above the margin 0")


def test_the_same_answers_get_the_same_interval() -> None:
    pair = answers(3, n=300, won=30, lost=10)
    assert compare(*pair, margin=0.01) == compare(*pair, margin=0.01)
