"""RandAugment against torchvision with the same draws, and what is drawn against the official code."""

import numpy as np
import plain_rng
import pytest
import torch
from plain_rand_augment import operation

from vergence.platform.augment import draw
from vergence.platform.augment.draw import RAND_OPERATIONS
from vergence.platform.augment.presets import PRESETS, Augmentation
from vergence.platform.augment.rand_augment import layers_of, rand_augment

FILL = [0.485, 0.456, 0.406]
N = 20_000


def drawn(spec: Augmentation, n: int = N) -> draw.Colours:
    return draw.colours(spec, draw.Counter.of(0, np.arange(n), 0, 1))


@pytest.mark.parametrize("name", RAND_OPERATIONS)
def test_each_operation_equals_torchvision_at_each_sample_s_level(name: str) -> None:
    n, side = 12, 24
    x = torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(0))
    x = (x * 255).round() / 255
    levels, negative = np.linspace(0, 1, n), np.arange(n) % 3 == 0
    which = np.full(n, RAND_OPERATIONS.index(name))
    layers = layers_of(which[:, None], levels[:, None], negative[:, None], side)
    got = x.clone()
    rand_augment(got, layers, torch.tensor(FILL).view(1, 3, 1, 1))
    expected = [operation(name, *each, FILL) for each in zip(x, levels.tolist(), negative.tolist())]
    torch.testing.assert_close(got, torch.stack(expected), atol=5e-5, rtol=0)
    assert (got != x).any()


def test_samples_take_their_own_operations_and_those_without_one_stay() -> None:
    n, side, rng = 64, 16, np.random.default_rng(0)
    x = (torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(1)) * 255).round() / 255
    which, levels = rng.integers(-1, len(RAND_OPERATIONS), (n, 2)), rng.uniform(0.3, 1, (n, 2))
    which[:4] = -1
    negative = rng.integers(0, 2, (n, 2)) > 0
    got = x.clone()
    rand_augment(got, layers_of(which, levels, negative, side), torch.tensor(FILL).view(1, 3, 1, 1))
    for i, image in enumerate(x):
        for layer in range(2):
            if which[i, layer] >= 0:
                name = RAND_OPERATIONS[which[i, layer]]
                image = operation(name, image, levels[i, layer], bool(negative[i, layer]), FILL)
        # equalize and posterize may take a pixel on a level's edge a level further, after a map or a blend
        error = (got[i] - image).abs()
        assert error.mean() < 2e-3, [RAND_OPERATIONS[k] for k in which[i]]
        assert (error > 1e-4).float().mean() < 0.05
    assert torch.equal(got[:4], x[:4])


def test_what_is_drawn_follows_the_official_code() -> None:
    p = drawn(PRESETS["infomin"][0])
    assert p.rand.shape == p.rand_levels.shape == p.rand_negative.shape == (N, 2)
    assert abs((p.rand < 0).mean() - 0.5) < 0.01
    shares = np.bincount(p.rand[p.rand >= 0], minlength=15) * 15 / (p.rand >= 0).sum()
    assert np.abs(shares - 1).max() < 0.1
    assert abs(p.rand_negative.mean() - 0.5) < 0.01
    assert abs((p.rand_levels == 1).mean() - 0.5) < 0.01  # N(10, .5), at most 10
    lower = 10 - 10 * p.rand_levels[p.rand_levels < 1]
    assert np.sqrt((lower**2).mean()) == pytest.approx(0.5, rel=0.03)
    assert abs(np.corrcoef(p.rand.T)[0, 1]) < 0.03
    assert abs(np.corrcoef(p.rand_levels.T)[0, 1]) < 0.03
    assert drawn(PRESETS["simclr"][0], 5).rand.shape == (5, 0)


def test_every_draw_comes_from_its_own_stream() -> None:
    spec = Augmentation(rand_augment=3, rand_augment_magnitude=5.0, rand_augment_std=2.0)
    p = drawn(spec, 40)
    for sample in range(40):
        for layer in range(3):
            u = [plain_rng.uniform(0, sample, 0, 1, draw.RAND, 4 * layer + k) for k in range(4)]
            assert p.rand[sample, layer] == (int(15 * u[0]) if u[1] < 0.5 else -1)
            level = 5 + 2 * draw.quantiles()[int(u[2] * 2**16)]
            assert p.rand_levels[sample, layer] == pytest.approx(min(max(level, 0), 10) / 10)
            assert p.rand_negative[sample, layer] == (u[3] < 0.5)
