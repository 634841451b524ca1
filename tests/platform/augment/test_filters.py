"""Edges against OpenCV, sharpness, noise and cut-out squares against torchvision on single float images."""

import cv2
import numpy as np
import pytest
import torch
from plain_rand_augment import tv
from torch import Tensor

from vergence.platform.augment import draw, filters, ops


def pictures(n: int = 6, height: int = 37, width: int = 41) -> Tensor:
    x = torch.rand(n, 3, height, width, generator=torch.Generator().manual_seed(0))
    x[0], x[1] = 0.5, x[1].round()
    return x


def test_sobel_is_the_length_of_opencv_s_gradient_over_the_longest() -> None:
    x = pictures()
    x[2, :, :, :20], x[2, :, :, 20:] = 0.0, 1.0
    for got, image in zip(filters.sobel_(x.clone()), x):
        gray = ops.luma(image[None])[0, 0].double().numpy()
        dx, dy = (
            cv2.Sobel(gray, cv2.CV_64F, *order, borderType=cv2.BORDER_REPLICATE) / 4
            for order in ((1, 0), (0, 1))
        )
        expected = np.sqrt((dx**2 + dy**2) / 2)
        assert np.abs(got.numpy() - expected).max() < 1e-6
        assert torch.equal(got[0], got[2])
    assert filters.sobel_(x[2:3])[0, 0, 18].max() == pytest.approx(0.9999 / np.sqrt(2), abs=1e-4)


@pytest.mark.parametrize(("height", "width"), [(37, 41), (3, 3), (2, 9)])
def test_sharpness_equals_torchvision(height: int, width: int) -> None:
    x, factors = pictures(6, height, width), torch.tensor([0.0, 0.1, 0.7, 1.0, 1.5, 1.9])
    expected = torch.stack([tv.adjust_sharpness(image, float(f)) for image, f in zip(x, factors)])
    torch.testing.assert_close(filters.sharpness_(x.clone(), factors), expected, atol=2e-6, rtol=0)


def test_noise_equals_torchvision_with_the_same_normal_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    x, sigma = pictures(3, 7, 9), torch.tensor([0.0, 0.1, 0.5])
    grain = draw.grain(np.arange(3, dtype=np.uint64), 3 * 7 * 9)
    normal = torch.from_numpy(draw.quantiles()[grain.astype(int) + 2**15]).float().view(3, 3, 7, 9)
    expected = []
    for image, own, s in zip(x, normal, sigma.tolist()):
        monkeypatch.setattr(torch, "randn_like", lambda *_, own=own, **__: own.clone())
        expected.append(tv.gaussian_noise(image, sigma=s))
    got = filters.noise_(x.clone(), torch.from_numpy(grain), sigma)
    torch.testing.assert_close(got, torch.stack(expected), atol=1e-6, rtol=0)


def test_grain_is_gaussian_and_independent_over_pixels_and_samples() -> None:
    grain = draw.grain(np.array([3, 4, 5], np.uint64), 50_001)
    assert grain.shape == (3, 50_001)  # no multiple of four
    normal = draw.quantiles()[grain.astype(int) + 2**15]
    assert np.abs(normal.mean(axis=1)).max() < 4 / np.sqrt(50_001)
    assert np.abs(normal.std(axis=1) - 1).max() < 4 / np.sqrt(2 * 50_001)
    for shares, share in ((np.abs(normal) > 1.959964, 0.05), (np.abs(normal) > 2.575829, 0.01)):
        assert shares.mean() == pytest.approx(share, rel=0.1)
    assert np.abs(np.corrcoef(normal) - np.eye(3)).max() < 4 / np.sqrt(50_001)
    assert abs(np.corrcoef(normal[0, 1:], normal[0, :-1])[0, 1]) < 4 / np.sqrt(50_001)
    assert (draw.grain(np.array([4], np.uint64), 10) == grain[1, :10]).all()


def test_quantiles_are_the_gaussian_s() -> None:
    table = draw.quantiles()
    shares = torch.special.ndtr(torch.from_numpy(table)).numpy()
    np.testing.assert_allclose(shares, (np.arange(2**16) + 0.5) / 2**16, atol=1e-12)


def test_cutout_equals_torchvision_s_erase() -> None:
    x, fill = pictures(4), torch.tensor([0.1, 0.2, 0.3]).view(1, 3, 1, 1)
    boxes = torch.tensor([[0, 0, 37, 41], [3, 5, 20, 8], [30, 0, 37, 2], [4, 4, 4, 9]])
    expected = [
        tv.erase(image, top, left, bottom - top, right - left, fill[0])
        for image, (top, left, bottom, right) in zip(x, boxes.tolist())
    ]
    assert torch.equal(filters.cutout_(x.clone(), boxes, fill), torch.stack(expected))
