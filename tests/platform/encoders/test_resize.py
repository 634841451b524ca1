"""The one resize rule."""

import numpy as np
import torch
import torch.nn.functional as F

from vergence.platform.encoders.resize import resize


def picture(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height * 1000 + width).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_an_image_of_that_size_is_returned_as_it_is() -> None:
    image = picture(32, 32)
    assert resize(image, 32) is image


def test_equals_torch_antialiased_bilinear_of_the_central_square() -> None:
    for height, width, top, left, side in [(90, 61, 14, 0, 61), (61, 90, 0, 14, 61), (20, 24, 0, 2, 20)]:
        image = picture(height, width)
        square = (
            torch.from_numpy(image[top : top + side, left : left + side].copy())
            .permute(2, 0, 1)[None]
            .double()
        )
        expected = F.interpolate(square, (32, 32), mode="bilinear", antialias=True, align_corners=False)
        got = resize(image, 32)
        assert got.shape == (32, 32, 3)
        assert got.dtype == np.uint8
        # Pillow rounds after each of its two passes
        assert np.abs(got - expected[0].permute(1, 2, 0).numpy()).max() < 1.1


def test_a_thin_strip_takes_no_memory() -> None:
    assert resize(np.zeros((1, 3_000_000, 3), np.uint8), 224).shape == (
        224,
        224,
        3,
    )  # 150 GB if resized first
