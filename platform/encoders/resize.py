"""From an image of any size to the encoder's input: the one rule of embed, evaluate, monitor and the card."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

RULE = (
    "RGB; an image that is not already S x S: its central square (side = the shorter side, offsets rounded "
    "down), resized to S x S by Pillow's BILINEAR filter, which is antialiased"
)


def resize(image: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """uint8 (H, W, 3) -> uint8 (size, size, 3), by RULE; an image of that size is returned as it is.

    Cropping comes first: the same picture as resizing first, without a huge strip in memory for a 1 x 10^6
    image.
    """
    height, width = image.shape[:2]
    if height == width == size:
        return image
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = Image.fromarray(np.ascontiguousarray(image[top : top + side, left : left + side]))
    return np.asarray(square.resize((size, size), Image.Resampling.BILINEAR))
