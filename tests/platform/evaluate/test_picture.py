from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vergence.platform.evaluate.picture import CELL, GAP, draw_map, draw_neighbours, neighbours

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (12, 8, 8, 3), dtype=np.uint8)
ROWS = RNG.normal(size=(12, 5)).astype(np.float32)


def test_neighbours_are_those_of_all_pairs_without_the_image_itself() -> None:
    places, cosines = neighbours(ROWS, [0, 7], 3)
    for row, query in enumerate([0, 7]):
        found = {
            other: ROWS[query] @ ROWS[other] / np.linalg.norm(ROWS[query]) / np.linalg.norm(ROWS[other])
            for other in range(12)
            if other != query
        }
        nearest = sorted(found, key=lambda other: -found[other])[:3]
        assert places[row].tolist() == nearest
        np.testing.assert_allclose(cosines[row], [found[other] for other in nearest], atol=1e-6)


def test_equal_images_are_told_apart_by_their_place() -> None:
    places, _ = neighbours(np.ones((4, 2), np.float32), [2], 3)
    assert places.tolist() == [[0, 1, 3]]


def test_the_sheet_has_a_row_an_image_and_shows_the_images(tmp_path: Path) -> None:
    images = np.zeros((12, 8, 8, 3), np.uint8)
    images[0] = (200, 10, 10)
    draw_neighbours(images, ROWS, tmp_path / "deep" / "sheet.png", rows=3, k=2)
    with Image.open(tmp_path / "deep" / "sheet.png") as sheet:
        assert sheet.size == (GAP * 3 + 3 * (CELL + GAP), 20 + 3 * (CELL + GAP))
        assert sheet.getpixel((GAP + CELL // 2, 20 + CELL // 2)) == (200, 10, 10)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["sheet.png"]


@pytest.mark.parametrize("classes", [(), ("cat", "dog")])
def test_a_map_is_drawn_with_classes_and_without(tmp_path: Path, classes: tuple[str, ...]) -> None:
    labels = np.arange(12) % 2 if classes else None
    draw_map(
        {"before": ROWS, "after": ROWS}, tmp_path / "map.png", images=IMAGES, labels=labels, classes=classes
    )
    with Image.open(tmp_path / "map.png") as drawn:
        assert drawn.width > 1000
        assert len(set(np.asarray(drawn.convert("L")).flatten().tolist())) > 20
