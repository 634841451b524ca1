"""What is frozen under a version, written down once more; and protocols by name."""

import pytest

from vergence.platform.augment import rng
from vergence.platform.errors import UserError
from vergence.platform.evaluate.definitions import KNN, LINEAR, versions
from vergence.platform.evaluate.protocols import DRAW, PROTOCOLS


def test_a_version_is_frozen() -> None:
    """A test that goes red here asks for another version, not for another number in the test."""
    assert (KNN.version, LINEAR.version) == ("knn-v1", "linear-v1")
    assert (KNN.fixed["k"], KNN.fixed["temperature"]) == (20, 0.1)
    assert LINEAR.fixed["C"] == (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0, 10000.0)
    assert LINEAR.fixed["tolerance"] == 1e-5
    assert rng.permutation(100, DRAW)[:10].tolist() == [
        30,
        49,
        95,
        31,
        53,
        80,
        18,
        67,
        33,
        2,
    ]  # who chooses C


def test_protocols_are_found_by_name_and_by_version() -> None:
    assert versions(["knn", "linear-v1", "knn-v1"]) == ["knn-v1", "linear-v1"]
    assert list(PROTOCOLS) == [KNN.version, LINEAR.version]
    with pytest.raises(UserError, match=r"'liner': there is no such one \(did you mean linear\?"):
        versions(["knn", "liner"])
