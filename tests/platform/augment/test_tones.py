"""Each operation on levels against torchvision's on single float images, and against Pillow's tables."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from plain_rand_augment import tv
from torch import Tensor

from vergence.platform.augment import ops, tones


def pictures(n: int = 12, height: int = 37, width: int = 41) -> Tensor:
    """Random images of unequal ranges; the first: flat, black, few levels, a single bright pixel, uint8 levels."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(n, 3, height, width, generator=generator)
    x = x * torch.rand(n, 3, 1, 1, generator=generator)
    x[0], x[1], x[2] = 0.5, 0.0, (x[2] * 4).round() / 4
    x[3] = 0.0
    x[3, :, 5, 7] = 1.0
    x[4] = (x[4] * 255).round() / 255
    return x


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (tones.autocontrast_, tv.autocontrast),
        (tones.equalize_, tv.equalize),
        (tones.invert_, tv.invert),
    ],
)
def test_without_a_parameter_equals_torchvision(
    ours: Callable[[Tensor], Tensor], theirs: Callable[[Tensor], Tensor]
) -> None:
    x = pictures()
    torch.testing.assert_close(
        ours(x.clone()), torch.stack([theirs(image) for image in x]), atol=2e-6, rtol=0
    )


def test_equalize_equals_pillow_on_its_levels() -> None:
    levels = np.random.default_rng(0).integers(0, 90, (40, 40, 3), dtype=np.uint8)
    expected = np.asarray(ImageOps.equalize(Image.fromarray(levels)))
    x = torch.from_numpy(levels).permute(2, 0, 1)[None].float() / 255
    assert (tones.equalize_(x)[0].permute(1, 2, 0) * 255).round().numpy().tolist() == expected.tolist()


def test_posterize_equals_torchvision_at_bits_of_each_sample_s_own() -> None:
    x = pictures(9)
    bits = torch.arange(9)
    expected = torch.stack([tv.posterize(image, int(each)) for image, each in zip(x, bits)])
    assert torch.equal(tones.posterize_(x.clone(), bits.float()), expected)


def test_solarize_equals_torchvision_at_thresholds_of_each_sample_s_own() -> None:
    x = pictures(7)
    thresholds = torch.tensor([0.0, 0.1, 0.25, 0.5, 0.5, 0.9, 1.0])
    expected = torch.stack([tv.solarize(image, each) for image, each in zip(x, thresholds.tolist())])
    assert torch.equal(ops.solarize_(x.clone(), ops.column(thresholds)), expected)
    above = ops.column(torch.full((7,), 256 / 255))
    assert torch.equal(ops.solarize_(x.clone(), above), x)


def test_solarize_add_lightens_the_levels_below_128() -> None:
    levels = torch.arange(256).view(1, 1, 16, 16).repeat(2, 3, 1, 1)
    got = tones.solarize_add_(levels / 255, torch.tensor([110, 30]) / 255) * 255
    for image, add in zip(got, (110, 30)):
        expected = [min(255, level + add) if level < 128 else level for level in range(256)]
        assert image[0].flatten().tolist() == pytest.approx(expected, abs=1e-4)
