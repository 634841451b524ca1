"""Pictures of what an encoder sees: a map of the embeddings, and each of some images beside its nearest neighbours."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

LEAST = 8  # images that make a map
MOST_CLASSES = 20  # that get a colour each
MOST_THUMBNAILS = 150  # on a map without classes
CELL, GAP, CAPTION = 96, 4, 20  # pixels of the sheet

Images = NDArray[np.uint8]
Rows = NDArray[np.float32]


def neighbours(embeddings: Rows, queries: Sequence[int], k: int) -> tuple[NDArray[np.int64], Rows]:
    """The k nearest others of each query by cosine, nearest first, ties to the lower place: places and cosines, (q, k)."""
    unit = embeddings / np.maximum(np.linalg.norm(embeddings, axis=1, keepdims=True), 1e-12)
    cosines = unit[list(queries)] @ unit.T
    cosines[np.arange(len(queries)), list(queries)] = -np.inf
    places = np.argsort(-cosines, axis=1, kind="stable")[:, :k]
    return places, np.take_along_axis(cosines, places, axis=1)


def draw_neighbours(images: Images, embeddings: Rows, path: Path, *, rows: int = 10, k: int = 7) -> None:
    """A PNG with one row for each of `rows` images, evenly spaced: the image, then its k nearest others with their cosines.

    images: (n, S, S, 3) uint8; embeddings: (n, dim). The PNG appears whole or not at all.
    """
    queries = np.unique(np.linspace(0, len(images) - 1, min(rows, len(images))).astype(int)).tolist()
    places, cosines = neighbours(embeddings, queries, min(k, len(images) - 1))
    step = CELL + GAP
    sheet = Image.new("RGB", (GAP * 3 + step * (1 + places.shape[1]), CAPTION + step * len(queries)), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    draw.text((GAP, 4), "image", fill=(90, 90, 90), font=font)
    draw.text((GAP * 3 + step, 4), "its nearest, by cosine", fill=(90, 90, 90), font=font)
    for row, query in enumerate(queries):
        y = CAPTION + row * step
        sheet.paste(_cell(images[query]), (GAP, y))
        for column, (place, cosine) in enumerate(zip(places[row], cosines[row])):
            x = GAP * 3 + step * (1 + column)
            sheet.paste(_cell(images[place]), (x, y))
            draw.rectangle((x, y + CELL - 14, x + 28, y + CELL), fill="white")
            draw.text((x + 3, y + CELL - 13), f"{cosine:.2f}", fill="black", font=font)
    _save(sheet.save, path)


def draw_map(
    panels: Mapping[str, Rows],
    path: Path,
    *,
    images: Images,
    labels: NDArray[np.int64] | None = None,
    classes: Sequence[str] = (),
) -> None:
    """A PNG with a t-SNE map of each panel's embeddings (title -> (n, dim), n >= 8), of the L2-normalised rows.

    labels: (n,) places in `classes`, -1 for none: points are coloured by them; without labels, or where they are too many
    to tell apart, images (n, S, S, 3) stand on the map themselves.
    """
    import matplotlib
    from sklearn.manifold import TSNE

    matplotlib.use("agg")
    from matplotlib import pyplot

    coloured = labels is not None and 1 < len(classes) <= MOST_CLASSES
    figure, axes = pyplot.subplots(
        1, len(panels), figsize=(5.5 * len(panels), 5.2), layout="constrained", squeeze=False
    )
    for axis, (title, rows) in zip(axes[0], panels.items()):
        unit = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
        perplexity = min(20.0, (len(unit) - 1) / 3)
        points = TSNE(random_state=0, init="pca", perplexity=perplexity).fit_transform(unit)
        axis.set(title=title, xticks=[], yticks=[])
        if coloured:
            assert labels is not None
            for number, name in enumerate(classes):
                own = points[labels == number]
                axis.scatter(
                    *own.T, color=matplotlib.colormaps["tab20"](number), s=14, linewidths=0, label=name
                )
        else:
            _thumbnails(axis, points, images)
    if coloured:
        figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside right center", markerscale=2)
    _save(lambda file, format: figure.savefig(file, dpi=110, format=format), path)
    pyplot.close(figure)


def _thumbnails(axis: Any, points: NDArray[Any], images: Images) -> None:
    from matplotlib.offsetbox import AnnotationBbox, OffsetImage

    axis.scatter(*points.T, s=6, color="0.7", linewidths=0)
    for i in np.unique(np.linspace(0, len(points) - 1, min(MOST_THUMBNAILS, len(points))).astype(int)):
        small = np.asarray(Image.fromarray(images[i]).resize((28, 28)))
        axis.add_artist(AnnotationBbox(OffsetImage(small, zoom=0.7), points[i], frameon=False))


def _cell(image: Images) -> Image.Image:
    return Image.fromarray(image).resize((CELL, CELL), Image.Resampling.BILINEAR)


def _save(save: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        save(draft, format="png")
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
