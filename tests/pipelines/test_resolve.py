"""What an attempt takes over from the ones before it."""

import pytest

from vergence.pipelines.resolve import _as_before
from vergence.platform.train.exact import BatchConfig

TWO_PASS = {"regime": "two-pass", "micro": 16}


@pytest.mark.parametrize(
    ("given", "kept", "share", "expected"),
    [
        ({}, {}, 64, ("auto", None)),
        ({}, TWO_PASS, 64, ("two-pass", 16)),
        ({}, TWO_PASS, 24, ("two-pass", None)),  # other workers: 16 no longer divides the share
        ({"micro": 32}, TWO_PASS, 64, ("two-pass", 32)),
        ({"regime": "kept"}, TWO_PASS, 64, ("kept", 16)),
        ({}, {"regime": "one", "micro": 64}, 128, ("one", None)),
        ({"micro": 32}, {"regime": "one", "micro": 64}, 64, ("auto", 32)),  # rules out one forward
    ],
)
def test_regime_and_micro_batch_stay_where_they_fit(given, kept, share, expected):
    config = _as_before(BatchConfig(global_batch=128, **given), kept, share)
    assert (config.regime, config.micro) == expected
