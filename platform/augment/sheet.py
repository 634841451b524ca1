"""A picture of what the augmentation does: originals and their views side by side."""

import os
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from .views import Views

_CELL, _GAP, _CAPTION = 112, 6, 20  # pixels
_PAPER, _INK = (255, 255, 255), (110, 110, 110)


def contact_sheet(
    images: list[NDArray[np.uint8]], ids: NDArray[np.int64], views: Views, path: Path, epoch: int = 0
) -> None:
    """Write a PNG with one row a sample: the original, then its views with the normalisation undone.

    Args:
        images: (H_i, W_i, 3) uint8, one a row.
        ids: (n,) int64 sample ids; the views are the very ones of a training run with the same seed.
        views: draws the views.
        path: of the PNG; it appears whole or not at all.
        epoch: from 0; another epoch draws other views.
    """
    augmented, _ = views(images, ids, epoch)
    columns = [[Image.fromarray(image) for image in images], *(_pictures(view, views) for view in augmented)]
    captions = ["original", *(f"view {number}" for number in range(len(augmented)))]
    sheet = Image.new("RGB", (_at(len(columns)), _CAPTION + _at(len(images))), _PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for column, (pictures, caption) in enumerate(zip(columns, captions)):
        x = _at(column)
        draw.text((x + _CELL // 2, _CAPTION // 2 + 2), caption, fill=_INK, font=font, anchor="mm")
        for row, picture in enumerate(pictures):
            cell = _fit(picture)
            margin = (_CELL - cell.width) // 2, (_CELL - cell.height) // 2
            sheet.paste(cell, (x + margin[0], _CAPTION + _at(row) + margin[1]))
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    sheet.save(unfinished, format="PNG")
    unfinished.replace(path)


def _at(position: int) -> int:
    return _GAP + position * (_CELL + _GAP)


def _pictures(view: torch.Tensor, views: Views) -> list[Image.Image]:
    """(n, 3, H, W) normalised to n pictures."""
    pixels = (view.float() * views.std + views.mean).clamp(0, 1).mul(255).round()
    return [Image.fromarray(each) for each in pixels.to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()]


def _fit(picture: Image.Image) -> Image.Image:
    """As large as a cell allows, proportions kept; small pictures show their pixels."""
    scale = _CELL / max(picture.size)
    size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    return picture.resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS)
