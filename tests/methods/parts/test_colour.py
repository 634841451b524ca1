from collections.abc import Callable

import cv2
import numpy as np
import pytest
import torch
from small_methods import normal
from torch import Tensor

from vergence.methods.parts import colour


def flat(*rgb: float) -> Tensor:
    return torch.tensor(rgb, dtype=torch.float64).view(1, 3, 1, 1)


@pytest.mark.parametrize(
    ("rgb", "expected"),
    [
        ((0, 0, 0), (0, 0, 0)),
        ((1, 1, 1), (100, 0, 0)),
        ((1, 0, 0), (53.2408, 80.0925, 67.2032)),
        ((0, 1, 0), (87.7347, -86.1827, 83.1793)),
        ((0, 0, 1), (32.2970, 79.1875, -107.8602)),
    ],
)
def test_lab_of_known_colours(rgb: tuple[float, ...], expected: tuple[float, ...]) -> None:
    assert colour.cie_lab(flat(*rgb)).flatten().tolist() == pytest.approx(expected, abs=0.02)


def test_lab_equals_opencv() -> None:
    pixels = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    theirs = cv2.cvtColor(pixels[0].permute(1, 2, 0).numpy(), cv2.COLOR_RGB2LAB)
    ours = colour.cie_lab(pixels)[0].permute(1, 2, 0).numpy()
    assert np.abs(ours - theirs).max() < 0.5  # OpenCV interpolates a table


def test_ydbdr_of_known_colours() -> None:
    assert colour.ydbdr(flat(1, 1, 1)).flatten().tolist() == pytest.approx([1, 0, 0], abs=1e-9)
    assert colour.ydbdr(flat(1, 0, 0)).flatten().tolist() == pytest.approx([2 * 0.299 - 1, -0.45 / 1.333, -1])
    assert colour.ydbdr(flat(0, 0, 1)).flatten().tolist() == pytest.approx([2 * 0.114 - 1, 1, 0.217 / 1.333])


@pytest.mark.parametrize("space", [colour.lab, colour.ydbdr, colour.rgb])
def test_channels_lie_in_the_unit_range_whatever_comes(space: Callable[[Tensor], Tensor]) -> None:
    converted = space(normal(2, 3, 8, 8) * 3)
    assert converted.isfinite().all()
    assert converted.abs().max() <= 1.001
