"""Batches: each request gets its own vectors, of its own encoder."""

import io
from dataclasses import dataclass
from typing import Any

import numpy as np

from vergence.platform.encoders.encoder import Images, Rows
from vergence.platform.serve.app import prepare, together


@dataclass(frozen=True, eq=False)
class Sums:
    """An encoder whose vectors tell image and encoder apart, and which counts its calls."""

    scale: float
    size: int
    calls: list[int]

    def __call__(self, images: Images) -> Rows:
        self.calls.append(len(images))
        return images.reshape(len(images), -1)[:, :2].astype(np.float32) * self.scale


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def test_requests_of_several_images_and_two_versions_get_their_own_vectors() -> None:
    old: Any = Sums(1.0, 8, [])
    new: Any = Sums(-1.0, 16, [])  # another version may take another size
    images = [np.full((n, 12, 12, 3), 10 * n, np.uint8) for n in (1, 3, 2, 1)]
    encoders = [old, new, old, new]
    batch = [prepare(npy(image), 1000, encoder) for image, encoder in zip(images, encoders)]
    rows = together(batch)
    for image, encoder, row in zip(images, encoders, rows):
        np.testing.assert_array_equal(row, np.full((len(image), 2), 10 * len(image)) * encoder.scale)
    assert (old.calls, new.calls) == ([3], [4])  # one call each
