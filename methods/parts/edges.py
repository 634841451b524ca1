"""Sobel's filters in front of a network, as DeepCluster's code has them (arXiv:1807.05520)."""

import torch
import torch.nn.functional as F
from torch import Tensor

_ACROSS = ((1.0, 0.0, -1.0), (2.0, 0.0, -2.0), (1.0, 0.0, -1.0))


def gradient(images: Tensor) -> Tensor:
    """(n, 3, H, W), of any scale -> (n, 2, H, W): the mean colour filtered across and down, zeros beyond the border."""
    across = torch.tensor(_ACROSS, dtype=images.dtype, device=images.device)
    return F.conv2d(images.mean(dim=1, keepdim=True), torch.stack([across, across.T])[:, None], padding=1)
