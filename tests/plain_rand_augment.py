"""RandAugment's operations by torchvision on one picture: what ours are compared with."""

import math
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from vergence.methods.torchvision_shim import torchvision

tv: Any = import_module("torchvision.transforms.v2.functional")  # once the shim has made torchvision whole
BILINEAR = torchvision.transforms.InterpolationMode.BILINEAR


def moved(image: Tensor, fill: list[float], angle: float = 0.0, **how: list[float]) -> Tensor:
    """Shear in degrees about the upper left corner, translate in pixels."""
    still = {"translate": [0.0, 0.0], "shear": [0.0, 0.0], **how}
    centre = [0.0, 0.0] if "shear" in how else None
    made: Tensor = tv.affine(
        image, angle=angle, scale=1.0, interpolation=BILINEAR, fill=fill, center=centre, **still
    )
    return made


def operation(name: str, image: Tensor, level: float, negative: bool, fill: list[float]) -> Tensor:
    """(3, S, S) float in [0, 1]; level in [0, 1], as the official code of InfoMin takes it to a parameter."""
    sign, side, enhancement = (-1 if negative else 1), image.shape[-1], 0.1 + 1.8 * level
    if name == "solarize_add":
        lighter = (image + int(110 * level) / 255).clamp(max=1)
        return torch.where(image < 128 / 255, lighter, image)
    if name == "solarize" and level == 1:
        return image  # no level is 256
    made: Tensor = {
        "autocontrast": lambda: tv.autocontrast(image),
        "equalize": lambda: tv.equalize(image),
        "invert": lambda: tv.invert(image),
        "rotate": lambda: tv.rotate(image, sign * 30 * level, BILINEAR, fill=fill),
        "posterize": lambda: tv.posterize(image, int(4 * level)),
        "solarize": lambda: tv.solarize(image, int(256 * level) / 255),
        "colour": lambda: tv.adjust_saturation(image, enhancement),
        "contrast": lambda: tv.adjust_contrast(image, enhancement),
        "brightness": lambda: tv.adjust_brightness(image, enhancement),
        "sharpness": lambda: tv.adjust_sharpness(image, enhancement),
        "shear_x": lambda: moved(image, fill, shear=[math.degrees(math.atan(sign * 0.3 * level)), 0.0]),
        "shear_y": lambda: moved(image, fill, shear=[0.0, math.degrees(math.atan(sign * 0.3 * level))]),
        "translate_x": lambda: moved(image, fill, translate=[-sign * 0.45 * level * side, 0.0]),
        "translate_y": lambda: moved(image, fill, translate=[0.0, -sign * 0.45 * level * side]),
    }[name]()
    return made
