import cv2
import numpy as np
import torch

from vergence.methods.parts.edges import gradient


def test_gradient_is_opencv_s_of_the_mean_colour_with_the_official_signs() -> None:
    images = torch.randn(2, 3, 9, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for got, image in zip(gradient(images), images.mean(dim=1).numpy()):
        across, down = (
            -cv2.Sobel(image, cv2.CV_64F, *order, borderType=cv2.BORDER_CONSTANT)
            for order in ((1, 0), (0, 1))
        )
        np.testing.assert_allclose(got, np.stack([across, down]), atol=1e-12)


def test_one_colour_has_no_edges_but_at_the_border() -> None:
    assert not gradient(torch.full((1, 3, 6, 6), 0.75))[:, :, 1:-1, 1:-1].any()
