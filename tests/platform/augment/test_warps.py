"""Turns, shears and translations against torchvision's on single float images, and against Pillow's."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image
from plain_rand_augment import BILINEAR, moved, tv
from torch import Tensor

from vergence.platform.augment import warps

FILL = [0.49, 0.2, 0.7]
Maps = Callable[[np.ndarray, int], np.ndarray]


def pictures(n: int, side: int) -> Tensor:
    return torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(0))


def mapped(x: Tensor, matrices: np.ndarray) -> Tensor:
    fill = torch.tensor(FILL).view(1, 3, 1, 1)
    return warps.affine_(x.clone(), torch.from_numpy(matrices.astype(np.float32)), fill)


@pytest.mark.parametrize("side", [8, 33])
def test_quarter_turns_equal_torchvision(side: int) -> None:
    x = pictures(3, side)
    for turns in (1, 2, 3):
        assert torch.equal(warps.quarter_turns_(x.clone(), turns), tv.rotate(x, 90.0 * turns))


@pytest.mark.parametrize("side", [32, 33])
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (warps.rotation, lambda image, value: tv.rotate(image, 90 * value, BILINEAR, fill=FILL)),
        (
            warps.shear_x,
            lambda image, value: moved(image, FILL, shear=[math.degrees(math.atan(value)), 0.0]),
        ),
        (
            warps.shear_y,
            lambda image, value: moved(image, FILL, shear=[0.0, math.degrees(math.atan(value))]),
        ),
        (
            warps.translation_x,
            lambda image, value: moved(image, FILL, translate=[-value * image.shape[-1], 0.0]),
        ),
        (
            warps.translation_y,
            lambda image, value: moved(image, FILL, translate=[0.0, -value * image.shape[-1]]),
        ),
    ],
)
def test_maps_equal_torchvision(ours: Maps, theirs: Callable[[Tensor, float], Tensor], side: int) -> None:
    x, values = pictures(9, side), np.linspace(-0.45, 0.45, 9)
    matrices = ours(values * 90 if ours is warps.rotation else values, side)
    expected = torch.stack([theirs(image, float(value)) for image, value in zip(x, values)])
    torch.testing.assert_close(mapped(x, matrices), expected, atol=5e-5, rtol=0)


@pytest.mark.parametrize(
    ("ours", "value", "data"),
    [
        (warps.shear_x, 0.3, (1, 0.3, 0, 0, 1, 0)),
        (warps.shear_y, -0.2, (1, 0, 0, -0.2, 1, 0)),
        (warps.translation_x, 0.25, (1, 0, 10, 0, 1, 0)),
        (warps.translation_y, -0.25, (1, 0, 0, 0, 1, -10)),
    ],
)
def test_maps_go_the_way_of_pillow_s(ours: Maps, value: float, data: tuple[float, ...]) -> None:
    ramp = np.arange(40, dtype=np.uint8)[:, None] * 2 + np.arange(40, dtype=np.uint8) * 4
    picture = Image.fromarray(np.stack([ramp] * 3, axis=2))
    expected = np.asarray(
        picture.transform((40, 40), Image.Transform.AFFINE, data, Image.Resampling.BILINEAR)
    )
    x = torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1)[None].float() / 255
    got = mapped(x, ours(np.array([value]), 40))[0].permute(1, 2, 0).numpy() * 255
    seen = expected[..., 0] > 0  # Pillow leaves black what is beyond the border
    assert 0.5 < seen.mean() < 1
    assert np.percentile(np.abs(got - expected)[seen], 95) <= 1


def test_a_rotation_goes_the_way_of_pillow_s() -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (5, 5, 3), dtype=np.uint8))
    expected = np.asarray(picture.resize((40, 40), Image.Resampling.BICUBIC))
    x = torch.from_numpy(expected.copy()).permute(2, 0, 1)[None].float() / 255
    rotated = Image.fromarray(expected).rotate(20, Image.Resampling.BILINEAR)
    got = mapped(x, warps.rotation(np.array([20.0]), 40))[0].permute(1, 2, 0).numpy() * 255
    assert np.abs(got - np.asarray(rotated))[10:30, 10:30].max() <= 1.5
