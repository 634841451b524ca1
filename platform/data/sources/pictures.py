"""Data sets of torchvision and scikit-learn: pictures without bytes of their own, written as PNG."""

import io
import json
from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import parse_qsl

import numpy as np
from PIL import Image

from vergence.platform.augment import rng
from vergence.platform.data.depth import NoRange, to_rgb
from vergence.platform.data.sources.source import Packed, digest, only_none
from vergence.platform.errors import UserError, nearest

MAX_SIDE = 4096  # pixels of a picture that is resized
DIGITS_TEST = 5  # every fifth digit is a test image
MAX_SHIFT = 4
_MOVED = 0x4D4F5645  # "MOVE", the use of the draws


def open_pictures(kind: str, spec: str, size: int | None, label: str | None) -> "Pictures":
    """kind: sklearn or torchvision. spec: NAME?KEY=VALUE&... Raises UserError."""
    name, _, query = spec.partition("?")
    options = {key: _value(text) for key, text in parse_qsl(query)}
    labelled = only_none(label, f"{kind}:{name}", "the class is the data set's own")
    return (_digits if kind == "sklearn" else _torchvision)(name, options, size, labelled)


class Pictures:
    """Items of a data set: a picture, or a picture and its class."""

    def __init__(
        self, dataset: Any, name: str, classes: Sequence[Any] | None, size: int | None, labelled: bool
    ) -> None:
        if size is not None and not (isinstance(size, int) and 0 < size <= MAX_SIDE):
            raise UserError(f"size={size}: the side of a packed picture is 1 to {MAX_SIDE:,} pixels")
        self.dataset, self.num, self.size, self.labelled = dataset, len(dataset), size, labelled
        if not self.num:
            raise UserError(f"{name}: the data set has no samples")
        self.classes = [_word(name) for name in classes] if labelled and classes is not None else None
        self.notes = list[str]()
        self.fingerprint = digest([(name, self.num)], size if labelled else [size, "no classes"])

    def samples(self, start: int, stop: int) -> Iterator[Packed]:
        for i in range(start, stop):
            item = self.dataset[i]
            picture, label = item if isinstance(item, tuple) else (item, None)
            if not isinstance(picture, Image.Image):
                raise UserError(
                    f"sample {i} is a {type(picture).__name__}; only pictures (PIL) can be packed"
                )
            try:
                picture = Image.fromarray(to_rgb(picture))
            except NoRange as error:
                raise UserError(f"sample {i} cannot be packed: {error}") from None
            if self.size:
                picture = picture.resize((self.size, self.size), Image.Resampling.BICUBIC)
            file = io.BytesIO()
            picture.save(file, "PNG")
            yield Packed(f"{i:09d}", "png", file.getvalue(), _label(i, label) if self.labelled else None)


def _label(i: int, label: Any) -> int | None:
    try:
        return None if label is None else int(label)
    except (TypeError, ValueError, RuntimeError):
        raise UserError(
            f"sample {i} has a {type(label).__name__} for a class, not a number; pack without classes by --label none"
        ) from None


def _digits(name: str, options: dict[str, Any], size: int | None, labelled: bool) -> Pictures:
    """scikit-learn's 1,797 handwritten digits of 8 x 8; split=train|test, size=PIXELS, shift=PIXELS (see _moved)."""
    unknown = set(options) - {"split", "size", "shift"}
    if name != "digits" or unknown:
        raise UserError(
            f"sklearn:{name}: only sklearn:digits[?split=train|test][&size=PIXELS][&shift=PIXELS] can be packed"
        )
    split, size, shift = options.get("split", "all"), size or options.get("size"), options.get("shift", 0)
    if split not in ("all", "train", "test"):
        raise UserError(f"sklearn:digits: split={split}; valid: all, test, train")
    if shift not in range(MAX_SHIFT + 1):
        raise UserError(f"sklearn:digits: shift={shift}; valid: 0 to {MAX_SHIFT} of the 8 pixels")
    from sklearn.datasets import load_digits

    digits = load_digits()
    numbers = np.arange(len(digits.target))
    test = numbers % DIGITS_TEST == DIGITS_TEST - 1
    kept = numbers[{"all": np.ones_like(test), "train": ~test, "test": test}[split]]
    grays = np.rint(digits.images[kept] * (255 / 16)).astype(np.uint8)  # pixels are 0 ... 16
    moved = [_moved(gray, number, shift) for gray, number in zip(grays, kept)]
    items = [(Image.fromarray(gray), int(label)) for gray, label in zip(moved, digits.target[kept])]
    name = f"sklearn:digits:{split}" + (f":shift={shift}" if shift else "")
    return Pictures(items, name, [str(digit) for digit in range(10)], size, labelled)


def _moved(gray: np.ndarray, number: int, shift: int) -> np.ndarray:
    """The picture moved by -shift ... shift whole pixels down and right, both drawn; what comes in is black."""
    down, right = (int(draw) % (2 * shift + 1) for draw in rng.mix(_MOVED, number, np.arange(2)))
    height, width = gray.shape
    return np.pad(gray, shift)[down : down + height, right : right + width]


def _torchvision(name: str, options: dict[str, Any], size: int | None, labelled: bool) -> Pictures:
    """torchvision.datasets.NAME(**options), made from pictures and integer labels."""
    from vergence.methods.torchvision_shim import torchvision

    if name not in torchvision.datasets.__all__:
        raise UserError(
            f"torchvision:{name}: no such data set; {nearest(name, torchvision.datasets.__all__)}"
        )
    try:
        dataset = getattr(torchvision.datasets, name)(**options)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(
            f"torchvision:{name}: {error}; give its arguments as ?name=value&name=value"
        ) from None
    classes = getattr(dataset, "classes", None)
    return Pictures(dataset, f"torchvision:{name}:{sorted(options.items())}", classes, size, labelled)


def _word(name: Any) -> str:
    """ImageNet's classes are tuples of synonyms."""
    return ", ".join(map(str, name)) if isinstance(name, tuple) else str(name)


def _value(text: str) -> Any:
    """`true`, `3`, `0.5`, `3,32,32` or a word."""
    if "," in text:
        return tuple(_value(part) for part in text.split(","))
    try:
        return json.loads(text)
    except ValueError:
        return text
