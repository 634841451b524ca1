"""Each operation against torchvision's on single float images."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from vergence.methods.torchvision_shim import torchvision
from vergence.platform.augment import ops

tv = torchvision.transforms.functional


def pictures(n: int = 16, height: int = 37, width: int = 41) -> Tensor:
    """Random images; the first are the awkward ones: flat, black, few levels (ties of channels), pure colours."""
    x = torch.rand(n, 3, height, width, generator=torch.Generator().manual_seed(0))
    x[0], x[1] = 0.5, 0.0
    x[2], x[3] = (x[2] * 4).round() / 4, x[3].round()
    return x


def numbers(low: float, high: float, n: int = 16) -> Tensor:
    values = torch.linspace(low, high, n)
    return values[torch.randperm(n, generator=torch.Generator().manual_seed(1))]


@pytest.mark.parametrize(
    ("ours", "theirs", "low", "high"),
    [
        (ops.brightness_, tv.adjust_brightness, 0.0, 2.0),
        (ops.contrast_, tv.adjust_contrast, 0.0, 2.0),
        (ops.saturation_, tv.adjust_saturation, 0.0, 2.0),
        (ops.hue_, tv.adjust_hue, -0.5, 0.5),
    ],
)
def test_colour_equals_torchvision(
    ours: Callable[[Tensor, Tensor], Tensor],
    theirs: Callable[[Tensor, float], Tensor],
    low: float,
    high: float,
) -> None:
    x, values = pictures(), numbers(low, high)
    expected = torch.stack([theirs(image, float(value)) for image, value in zip(x, values)])
    torch.testing.assert_close(ours(x.clone(), values), expected, atol=2e-6, rtol=0)


def test_channels_last_gives_the_same() -> None:
    x, values = pictures(), numbers(-0.5, 0.5)
    strided = x.clone(memory_format=torch.channels_last)
    assert torch.equal(ops.hue_(strided, values), ops.hue_(x.clone(), values))


def test_jitter_runs_each_sample_in_its_own_order() -> None:
    x = pictures(30)
    rng = np.random.default_rng(0)
    steps = np.stack([rng.permutation(4) for _ in x])
    steps[5], steps[6, 2] = ops.NOTHING, ops.NOTHING
    factors = rng.uniform([0.2, 0.2, 0.2, -0.2], [1.8, 1.8, 1.8, 0.2], (30, 4)).astype(np.float32)
    theirs = (
        tv.adjust_brightness,
        tv.adjust_contrast,
        tv.adjust_saturation,
        tv.adjust_hue,
        lambda image, _: image,
    )
    expected = []
    for image, order, factor in zip(x, steps, factors.tolist()):
        for step in order:
            image = theirs[step](image, [*factor, 0.0][step])
        expected.append(image)
    got = ops.jitter(x.clone(), ops.turns_of(factors, steps))
    # four ops one after another: a later one magnifies the rounding of an earlier one, by at most 1.8 each
    torch.testing.assert_close(got, torch.stack(expected), atol=1e-5, rtol=0)


def test_gray_and_solarize_equal_torchvision() -> None:
    x = pictures()
    assert torch.equal(ops.grayscale_(x.clone()), tv.rgb_to_grayscale(x, 3))
    assert torch.equal(ops.solarize_(x.clone(), 0.5), tv.solarize(x, 0.5))
    assert torch.equal(ops.solarize_(x.clone(), 0.25), tv.solarize(x, 0.25))  # one image has that level


@pytest.mark.parametrize("kernel", [3, 9, 23])
def test_blur_equals_torchvision(kernel: int) -> None:
    x, sigma = pictures(), numbers(0.1, 2.0)
    expected = torch.stack([tv.gaussian_blur(image, kernel, float(each)) for image, each in zip(x, sigma)])
    taps = torch.from_numpy(ops.blur_taps(sigma.double().numpy(), kernel, min(x.shape[2:])))
    torch.testing.assert_close(ops.blur_(x.clone(), taps), expected, atol=5e-6, rtol=0)
    torch.testing.assert_close(ops.blurred(x, taps), expected, atol=5e-6, rtol=0)  # as on a GPU


def boxes(n: int, height: int, width: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    tops, lefts = rng.integers(0, height, n), rng.integers(0, width, n)
    box = np.stack(
        [tops, lefts, rng.integers(1, height - tops + 1), rng.integers(1, width - lefts + 1)], axis=1
    )
    box[0], box[1] = (0, 0, height, width), (height - 1, width - 1, 1, 1)
    return box


@pytest.mark.parametrize(("source", "size", "tolerance"), [(32, 32, 1e-5), (24, 48, 1e-5), (200, 224, 5e-5)])
def test_enlarge_equals_torchvision(source: int, size: int, tolerance: float) -> None:
    x, box, flip = pictures(12, source, source), boxes(12, source, source), np.arange(12) % 2 == 0
    expected = [
        tv.resized_crop(image, *map(int, each), [size, size], antialias=True) for image, each in zip(x, box)
    ]
    expected = [image.flip(2) if mirrored else image for image, mirrored in zip(expected, flip)]
    got = ops.enlarge(x, ops.places_of(box, flip, size, source))
    torch.testing.assert_close(got, torch.stack(expected), atol=tolerance, rtol=0)
