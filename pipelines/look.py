"""`vergence look`: pictures of what an encoder sees in some images."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from vergence.platform.cluster.capacity import physical_cpus
from vergence.platform.errors import UserError

if TYPE_CHECKING:
    from vergence.platform.encoders.encoder import Embedder

MAP, SHEET = "map.png", "neighbours.png"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("encoder", metavar="ENCODER", help="a run's name, a .pt2 file or models:/NAME@ALIAS")
    parser.add_argument("source", metavar="SHARDS|FOLDER", help="shards, or a folder of images")
    parser.add_argument("--out", type=Path, default=Path("look"), metavar="FOLDER", help="default: look")
    parser.add_argument(
        "--count", type=int, default=500, metavar="N", help="images, evenly spaced (default 500)"
    )
    parser.add_argument("--rows", type=int, default=10, metavar="N", help="rows of the sheet (default 10)")
    parser.add_argument(
        "--device", default="auto", help="cpu, cuda or cuda:N (default: a GPU if there is one)"
    )
    parser.add_argument("--json", action="store_true", help="say what was drawn as JSON on stdout")
    parser.epilog = f"""\
FOLDER/{SHEET}   images beside their nearest others, with the cosines
FOLDER/{MAP}          a t-SNE map: coloured by class where there are up to 20, else with the images on it; beside it the map
                 of the encoder as initialised, if its card has the recipe

examples:
  vergence look mine shards/
  vergence look models:/simclr-cifar10@champion ~/Pictures --out pictures --count 200
  vergence look mine shards/ --json | jq -r .map"""


def main(options: argparse.Namespace) -> int:
    from vergence.platform.encoders.encoder import usable
    from vergence.platform.encoders.load import load_encoder

    device = usable(options.device)
    encoder = load_encoder(options.encoder).to(device)
    seen = look(encoder, options.source, options.out, count=options.count, rows=options.rows)
    if options.json:
        drawn = {"neighbours": str(options.out / SHEET), "map": str(options.out / MAP)}
        print(
            json.dumps(
                {"encoder": encoder.name, **drawn, "images": seen.num_images, "unreadable": seen.num_bad}
            )
        )
        return 0
    print(
        f"{options.out}/{SHEET}, {options.out}/{MAP}: {seen.num_images:,} images as {encoder.name} sees them"
    )
    if seen.num_bad:
        print(f"{seen.num_bad:,} images cannot be read and were left out")
    return 0


class Seen(NamedTuple):
    num_images: int
    num_bad: int


def look(encoder: "Embedder", source: str, out: Path, *, count: int = 500, rows: int = 10) -> Seen:
    """Draw the map and the sheet of `count` images, evenly spaced, into the folder `out`.

    Raises UserError: no images, or too few that can be read.
    """
    import numpy as np

    from vergence.platform.encoders.images import stream_images
    from vergence.platform.encoders.sources import open_images
    from vergence.platform.evaluate.picture import LEAST, draw_map, draw_neighbours

    if count < LEAST or rows < 1 or (out.exists() and not out.is_dir()):
        raise UserError(
            f"look: --count {count} --rows {rows} --out {out}: at least {LEAST} images, 1 row, a folder"
        )
    there = open_images(source)
    everyone = np.concatenate([ids for _, ids in there.pieces])
    chosen = everyone[np.unique(np.linspace(0, len(everyone) - 1, min(count, len(everyone))).astype(int))]
    batches = list(stream_images(there.open, chosen, encoder.size, threads=physical_cpus()))
    ids = np.concatenate([np.empty(0, np.int64), *(some for some, _ in batches)])
    if len(ids) < LEAST:
        raise UserError(f"{source}: {len(ids)} images can be read; a map takes at least {LEAST}")
    images = np.concatenate([batch for _, batch in batches])
    embeddings = encoder(images)
    draw_neighbours(images, embeddings, out / SHEET, rows=rows)
    panels = {"as it is": embeddings}
    untrained = _untrained(encoder)
    if untrained is not None:
        panels = {"as initialised": untrained(images), "after pretraining": embeddings}
    labels, classes = there.classes(ids)
    draw_map(panels, out / MAP, images=images, labels=labels, classes=classes)
    return Seen(len(ids), len(chosen) - len(ids))


def _untrained(encoder: "Embedder") -> "Embedder | None":
    """The encoder before training, if its card tells how it was built."""
    from vergence.pipelines.evaluate import initialised
    from vergence.platform.encoders.encoder import LoadedEncoder

    if not isinstance(encoder, LoadedEncoder) or encoder.card is None or encoder.card.recipe is None:
        return None
    try:
        return initialised(encoder, seed=0).to(encoder.device)
    except UserError:  # of another version, whose recipe means something else
        return None
