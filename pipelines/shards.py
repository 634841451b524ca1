"""`vergence shards`: pack images into webdataset shards; index, check and preview them."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vergence.platform.errors import UserError
from vergence.platform.home import home
from vergence.platform.store import is_url
from vergence.platform.text import printable

if TYPE_CHECKING:
    from vergence.platform.data.check import Checked

SHARDS_HELP = (
    "a tar, a folder of tars, a glob (** for folders below), or a brace range 'train-{000000..000009}.tar'; or the URL "
    "of such in a store (s3://, gs://, az://, https://)"
)
SHOWN = 10  # classes, and kinds of members
RAW = argparse.RawDescriptionHelpFormatter


def configure(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="pack|index|check|preview", required=True)
    _configure_pack(actions.add_parser("pack", help="write images into shards", formatter_class=RAW))
    index = actions.add_parser(
        "index", help="scan the shards once and say what they hold", formatter_class=RAW, epilog=INDEX_EPILOG
    )
    index.add_argument("shards", metavar="SHARDS", help=SHARDS_HELP)
    index.add_argument("--json", action="store_true", help="print what they hold as JSON")
    check = actions.add_parser(
        "check",
        help="read and decode every sample, list what is broken",
        formatter_class=RAW,
        epilog=CHECK_EPILOG,
    )
    check.add_argument("shards", metavar="SHARDS", help=SHARDS_HELP)
    check.add_argument(
        "--max-pixels", type=int, metavar="N", help="images with more pixels are broken (default 50,000,000)"
    )
    preview = actions.add_parser(
        "preview", help="draw originals beside a recipe's views", formatter_class=RAW, epilog=PREVIEW_EPILOG
    )
    preview.add_argument("shards", metavar="SHARDS", help=SHARDS_HELP)
    preview.add_argument("--recipe", required=True, metavar="RECIPE", help="a shipped name or a path")
    preview.add_argument(
        "overrides", metavar="KEY=VALUE", nargs="*", default=[], help="settings, e.g. views.0.size=128"
    )
    preview.add_argument("--out", required=True, type=Path, metavar="PNG", help="the picture to write")
    preview.add_argument("--count", type=int, default=8, metavar="N", help="number of images (default 8)")
    preview.add_argument(
        "--epoch", type=int, default=0, metavar="E", help="the epoch whose views are drawn (0)"
    )


def _configure_pack(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("src", metavar="SRC", help="where the images are: see below")
    parser.add_argument("out", metavar="OUT", help="folder of the shards, or its URL in a store")
    parser.add_argument("--name", default="train", help="shards are NAME-000000.tar, ... (default train)")
    parser.add_argument(
        "--per-shard", type=int, default=5000, metavar="N", help="samples a shard (default 5000)"
    )
    parser.add_argument(
        "--size",
        type=int,
        metavar="PIXELS",
        help="resize to a square; only torchvision: and sklearn: sources",
    )
    parser.add_argument(
        "--label",
        metavar="COLUMN",
        help="the parquet column of classes (default: label, if there is one); none: pack without classes",
    )
    parser.epilog = PACK_EPILOG


PACK_EPILOG = """\
SRC:
  FOLDER                    images below it; the first folder of a path is the class. No classes if an image
                            lies directly in FOLDER. Without any image: sounds (.wav, .flac, .ogg)
  FILE.parquet or a glob    as on the Hugging Face hub: img or image = {bytes, path}, label = a whole number or a
                            word (words are numbered in sorted order)
  torchvision:NAME?KEY=VALUE&...   a torchvision data set with these arguments
  sklearn:digits?split=train&size=16   scikit-learn's digits; split train, test or all; &shift=1 moves each by up to
                            that many of its 8 pixels

Bytes are copied, never re-encoded; PNG where the source has none. Key = relative path without extension,
dots become _, a repeated key gets -2, -3. Files without an ending that we know are images if their first
bytes say so. What is left out is said with its count. An interrupted pack goes on where it stopped; when all
shards are there, it does nothing. Into a store, each shard is made on this machine, put there whole, and after it
NAME.tar.idx, by which others index it without reading it.

examples:
  vergence shards pack ~/Pictures shards/
  vergence shards pack 'cifar10/train-*.parquet' cifar10/
  vergence shards pack 'cifar10/test-*.parquet' cifar10/ --name test
  vergence shards pack 'cifar100/train-*.parquet' cifar100/ --label fine_label
  vergence shards pack 'torchvision:FakeData?size=200&image_size=3,32,32' fake/
  vergence shards pack 'imagenet/train-*.parquet' s3://bucket/imagenet"""

INDEX_EPILOG = """\
The index is kept in the state folder and used by every verb; it is made anew when a shard changes.
Shards of a store: what each holds is read from the file beside it (NAME.tar.idx); where there is none, or of another
version, the shard is read once from end to end and the file put there, or kept in the state folder where the store
takes none. An interrupted call goes on with the rest.

examples:
  vergence shards index 'cifar10/train-{000000..000009}.tar'
  vergence shards index s3://bucket/imagenet
  vergence shards index 'https://host/data/train-{000000..000999}.tar' --json"""

CHECK_EPILOG = """\
One line for each broken sample, and for each shard with images that end in no sample: SHARD  KEY  REASON.
Exit code 0: all is well, 1: something is broken.

example:
  vergence shards check cifar10/"""

PREVIEW_EPILOG = """\
example:
  vergence shards preview cifar10/ --recipe simclr-cifar10 --out views.png
  vergence shards preview shards/ --recipe images --out views.png 'views.0.crop_scale=[0.4, 1.0]'
  vergence shards preview shards/ --recipe simclr-imagenet --out views.png views.0.rotate=0.5 views.0.cutout=0.5
  vergence shards preview shards/ --recipe infomin-imagenet --out views.png views.0.rand_augment=4"""


def main(args: argparse.Namespace) -> int:
    return {"pack": _pack, "index": _index, "check": _check, "preview": _preview}[args.action](args)


def _pack(args: argparse.Namespace) -> int:
    from vergence.platform.data.shards import pack

    done = pack(args.src, args.out, args.name, args.per_shard, args.size, args.label, progress=True)
    last = len(done.shards) - 1
    pattern = f"{args.out.rstrip('/')}/{args.name}-" + (
        "000000.tar" if last == 0 else f"{{000000..{last:06d}}}.tar"
    )
    kept = len(done.shards) - done.num_written
    state = "exists already, nothing to do" if not done.num_written else f"{done.num_written} shards written"
    kept_text = f" ({kept} were there already)" if kept and done.num_written else ""
    classes = f", {len(done.classes)} classes" if done.classes else ""
    print(f"{pattern}: {state}{kept_text}: {done.num_samples:,} samples{classes}")
    _tell(done.notes)
    return 0


def _tell(notes: Sequence[str]) -> None:
    for note in notes:
        print(f"  {note}")


def _index(args: argparse.Namespace) -> int:
    from vergence.platform.data.index import open_index

    # of a store, what stands beside the shards is to be looked at, and made where it is missing
    index = open_index(args.shards, home() / "index", progress=True, images=False, anew=is_url(args.shards))
    if args.json:
        about = {
            "samples": len(index),
            "shards": len(index.shards),
            "digest": index.digest,
            "index": str(index.path),
        }
        print(
            json.dumps(about | {"members": index.extensions, "classes": index.classes, "notes": index.notes})
        )
        return 0
    kinds = list(index.extensions.items())
    members = ", ".join(f"{count:,} .{extension}" for extension, count in kinds[:SHOWN])
    members += f" and {len(kinds) - SHOWN} more" if len(kinds) > SHOWN else ""
    print(f"{args.shards}: {len(index):,} samples in {len(index.shards):,} shards ({members})")
    print(f"digest {index.digest}\nindex  {index.path}")
    if index.classes:
        shown = ", ".join(index.classes[:SHOWN]) + (", ..." if len(index.classes) > SHOWN else "")
        print(f"{len(index.classes):,} classes: {shown}")
    _tell(index.notes)
    return 0


def _check(args: argparse.Namespace) -> int:
    checked = check(args.shards, args.max_pixels)
    for shard, key, reason in checked.broken:
        print(printable(f"{shard}  {key or '(whole shard)'}  {reason}"))
    state = f"{len(checked.broken):,} broken" if checked.broken else "all can be read"
    print(f"{args.shards}: {checked.num_samples:,} samples in {checked.num_shards:,} shards: {state}")
    _tell(checked.notes)
    return 1 if checked.broken else 0


def check(shards: str, max_pixels: int | None = None) -> "Checked":
    """Read and decode all samples; what is broken by shard and key (None: the shard as a whole)."""
    from vergence.platform.data.check import check_shards
    from vergence.platform.data.decode import MAX_PIXELS

    return check_shards(shards, home() / "index", max_pixels or MAX_PIXELS, progress=True)


def _preview(args: argparse.Namespace) -> int:
    count = preview(args.shards, args.recipe, args.out, args.count, args.epoch, args.overrides)
    print(f"{args.out}: {count} images of {args.shards} and their views by {args.recipe}")
    return 0


def preview(
    shards: str, recipe_name: str, out: Path, count: int = 8, epoch: int = 0, overrides: Sequence[str] = ()
) -> int:
    """Draw a contact sheet of `count` images, evenly spaced in the set, as PNG; the number drawn.

    Raises UserError: unknown recipe, nothing matches, or none of these images can be read.
    """
    import numpy as np

    from vergence.pipelines.recipe import load_recipe
    from vergence.platform.augment.sheet import contact_sheet
    from vergence.platform.augment.views import Views
    from vergence.platform.data.decode import BadSample
    from vergence.platform.data.index import open_index
    from vergence.platform.data.read import Reader

    if count < 1 or out.suffix.lower() != ".png":
        raise UserError(f"--count {count} --out {out}: at least 1 image, and a file that ends in .png")
    recipe = load_recipe(recipe_name, overrides)
    if not recipe.views:
        raise UserError(f"--recipe {recipe_name}: its method takes no views, there is nothing to draw")
    index = open_index(shards, home() / "index", progress=True)
    _tell(index.notes)
    ids = np.unique(np.linspace(0, len(index) - 1, min(count, len(index))).astype(np.int64))
    read = zip(ids, Reader(index, recipe.data.max_pixels).images(ids))
    good = {i: image for i, image in read if not isinstance(image, BadSample)}
    if not good:
        raise UserError(f"{shards}: none of the {len(ids)} images can be read; see `vergence shards check`")
    views = Views(recipe.views, seed=recipe.seed, mean=recipe.data.mean, std=recipe.data.std)
    contact_sheet(list(good.values()), np.array(list(good)), views, epoch=epoch, path=out)
    return len(good)
