"""Pixels of more than 8 bits to 8 bits: one rule, and what it cannot decide is refused.

- Unsigned 16 bits: the highest 8 of the bits that the file declares (12 in a 12-bit TIFF, else 16). So 0 stays
  black and the largest number that can be stored becomes white, as Pillow and libpng do for colour.
- Floating point: 0 is black and 1 is white; numbers outside [0, 1] are refused.
- Signed and 32-bit integers have no known range: refused.
- A picture that stays below 1/16 of its range would be nearly black (12-bit data in a 16-bit file): refused,
  unless it is all of one value.
"""

import numpy as np
from PIL import Image

ONE_CHANNEL = ("I;16", "I;16L", "I;16B", "I;16N", "I", "F")  # Pillow's modes above 8 bits
DIM = 16  # of 256: a sixteenth of the range
_INTEGERS_OF_16_BITS = ("PNG", "PPM")  # formats whose mode I is 0 ... 65,535
_BITS_PER_SAMPLE, _PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0  # tags of TIFF


class NoRange(ValueError):
    """Pixels that no rule takes to 8 bits; the text says why, and what to do."""


def to_rgb(image: Image.Image) -> np.ndarray:
    """A Pillow image as uint8 (H, W, 3), C-contiguous. Raises NoRange."""
    if image.mode in ONE_CHANNEL:
        return np.repeat(_one_channel(image)[..., None], 3, axis=-1)
    pixels = np.array(image.convert("RGB"))
    if declared_bits(image) > 8:
        _refuse_dim(pixels, pixels)
    return pixels


def from_uint16(pixels: np.ndarray, bits: int = 16) -> np.ndarray:
    """The highest 8 of `bits` bits of uint16 pixels of any shape, as uint8. Raises NoRange."""
    shallow = np.minimum(pixels >> (bits - 8), 255).astype(np.uint8)
    _refuse_dim(pixels, shallow)
    return shallow


def declared_bits(image: Image.Image) -> int:
    """Bits of a channel as a TIFF declares them, 16 in a mode that holds 16, else 8."""
    tags = getattr(image, "tag_v2", {})
    return max(tags.get(_BITS_PER_SAMPLE, ()), default=16 if image.mode.startswith("I;16") else 8)


def _one_channel(image: Image.Image) -> np.ndarray:
    values = np.asarray(image)
    if image.mode == "F":
        shallow = _from_float(values)
    elif image.mode.startswith("I;16"):
        shallow = from_uint16(values, declared_bits(image))
    elif image.format in _INTEGERS_OF_16_BITS:
        shallow = from_uint16(values)
    else:
        raise NoRange(
            f"whole numbers of 32 bits or with a sign, from {values.min():,} to {values.max():,}, have no known range; "
            "save 8 bits, or 16 without a sign"
        )
    inverted = getattr(image, "tag_v2", {}).get(_PHOTOMETRIC) == _WHITE_IS_ZERO
    return 255 - shallow if inverted else shallow


def _from_float(values: np.ndarray) -> np.ndarray:
    low, high = values.min(), values.max()
    if not (low >= 0 and high <= 1):  # NaN is neither
        raise NoRange(
            f"floating-point pixels from {low:g} to {high:g}; only 0 (black) to 1 (white) can be read"
        )
    shallow = np.rint(values * 255).astype(np.uint8)
    _refuse_dim(values, shallow)
    return shallow


def _refuse_dim(values: np.ndarray, shallow: np.ndarray) -> None:
    if shallow.max() < DIM and values.min() < values.max():
        raise NoRange(
            f"the largest value is {values.max():,} and would be nearly black at 8 bits; scale the pixels to the full "
            "range of the file first"
        )
