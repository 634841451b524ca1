"""The contact sheet shows what the training sees."""

from pathlib import Path

import numpy as np
from PIL import Image

from vergence.platform.augment.sheet import contact_sheet
from vergence.platform.augment.views import Views, ViewSpec


def test_sheet_shows_originals_and_views_in_place(tmp_path: Path) -> None:
    colours = [(200, 30, 40), (20, 160, 60), (35, 70, 210)]
    images = [np.full((40, 60, 3), colour, dtype=np.uint8) for colour in colours]
    views = Views([ViewSpec(count=2, size=32)], seed=0, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.25))
    path = tmp_path / "deep" / "views.png"
    contact_sheet(images, np.arange(3), views, path)
    contact_sheet(images, np.arange(3), views, path)  # a second time replaces it
    assert [each.name for each in path.parent.iterdir()] == ["views.png"]
    sheet = np.asarray(Image.open(path).convert("RGB")).astype(int)
    height, width, _ = sheet.shape
    for row, colour in enumerate(
        colours
    ):  # a flat image stays flat under crop and flip, so mean and std are undone
        for column in range(3):
            y, x = round(20 + (row + 0.5) * (height - 20) / 3), round((column + 0.5) * width / 3)
            assert np.abs(sheet[y, x] - colour).max() <= 1
