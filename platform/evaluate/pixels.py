"""Raw pixels as an encoder: the baseline that has learnt nothing."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from vergence.platform.encoders.resize import resize

SIDE = 32  # at which raw pixels are compared: a larger picture only costs memory


@dataclass(frozen=True)
class Pixels:
    """Pixels as an encoder is given them: normalised and flattened; on CIFAR-10 9 points above ones that keep their mean."""

    size: int  # input side, pixels
    mean: Sequence[float]
    std: Sequence[float]
    name: str = "raw pixels"
    digest: str = ""  # quicker made than read

    @property
    def side(self) -> int:
        return min(SIDE, self.size)

    @property
    def dim(self) -> int:
        return 3 * self.side**2

    @property
    def about(self) -> str:
        return f"{self.side} x {self.side}, the encoder's input: pixels normalised by its mean and std, flattened"

    def to(self, device: torch.device) -> "Pixels":
        """Itself: there is nothing to move."""
        return self

    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """uint8 (n, S, S, 3) -> float32 (n, dim)."""
        mean, std = np.array(self.mean, np.float32) * 255, np.array(self.std, np.float32) * 255
        return np.stack([((resize(image, self.side) - mean) / std).reshape(-1) for image in images])
