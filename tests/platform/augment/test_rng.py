"""The generator: golden values, its transcription in Python integers, and its statistics."""

import time

import numpy as np
import pytest
from plain_rng import chain

from vergence.platform.augment import rng


def test_golden_values() -> None:
    # 0xE220A8397B1DCDAF is the first output of everybody's SplitMix64 with seed 0
    assert [int(x) for x in rng.mix(np.arange(3))] == [
        0xE220A8397B1DCDAF,
        0x910A2DEC89025CC1,
        0x975835DE1C9756CE,
    ]
    assert int(rng.mix(0, 1, 2)) == 0x5DEF8C1F8A9E3322
    assert int(rng.mix(-1)) == 0xE4D971771B652C20
    assert rng.uniform(7, np.arange(3)).tolist() == [
        0.7215081806049702,
        0.23928447285727472,
        0.27598243332716743,
    ]
    assert rng.permutation(10, 0, 3).tolist() == [3, 5, 6, 0, 1, 9, 2, 4, 7, 8]


def test_mix_equals_transcription_and_broadcasts() -> None:
    seeds, ids = np.array([0, 3, 2**63 - 1]), np.array([5, -7])
    bits = rng.mix(seeds[:, None], ids, 11)
    assert bits.dtype == np.uint64
    assert bits.shape == (3, 2)
    assert [[int(x) for x in row] for row in bits] == [
        [chain(int(s), int(i), 11) for i in ids] for s in seeds
    ]
    assert rng.mix(2**64 - 1) == rng.mix(-1) == rng.mix(np.uint64(2**64 - 1))
    assert rng.mix(1, 2).shape == ()


def test_words_are_integers() -> None:
    with pytest.raises(TypeError, match="integers"):
        rng.mix(np.array([0.5]))


def test_uniform_is_uniform_and_uncorrelated() -> None:
    u = rng.uniform(0, np.arange(100_000)[:, None], np.arange(2))
    assert ((u >= 0) & (u < 1)).all()
    counts = np.histogram(u[:, 0], bins=100, range=(0, 1))[0]
    assert ((counts - 1000) ** 2 / 1000).sum() < 150  # chi-square, 99 degrees of freedom: p about 1e-3
    neighbours = [(u[:, 0], u[:, 1]), (u[:-1, 0], u[1:, 0])]
    assert all(abs(np.corrcoef(a, b)[0, 1]) < 0.013 for a, b in neighbours)  # 4 standard errors


def test_permutation_is_one_and_depends_on_every_word() -> None:
    assert (np.sort(rng.permutation(1000, 1, 2)) == np.arange(1000)).all()
    orders = [tuple(rng.permutation(1000, *words)) for words in ((1, 2), (2, 1), (1, 3), (1, 2, 0))]
    assert len(set(orders)) == 4
    assert rng.permutation(0, 1).shape == (0,)


def test_permutation_of_a_million_takes_a_fraction_of_a_second() -> None:
    start = time.process_time()
    rng.permutation(10**6, 0)
    assert time.process_time() - start < 1.0  # about 0.1; ten million about 1
