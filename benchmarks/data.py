"""CIFAR-10 for the benchmarks: the same encoded files as a folder (peers) and as shards (ours)."""

import os
import subprocess
import sys
from pathlib import Path

CACHE = Path("build/bench").absolute()
HOME = CACHE / "home"  # the state folder of the runs that are measured
IMAGENET = 1_281_167  # training images of ImageNet-1k


def cifar10() -> Path:
    """Folder of the parquet files; VERGENCE_SHARED names its grandparent."""
    folder = Path(os.environ.get("VERGENCE_SHARED", "")) / "data" / "cifar10"
    if not folder.is_dir():
        sys.exit(
            "benchmarks: set VERGENCE_SHARED to a folder with data/cifar10/*.parquet (Hugging Face layout)"
        )
    return folder


def pack(source: str, target: Path, name: str = "train") -> str:
    """Shards of a source, packed once; a pattern."""
    command = [
        sys.executable,
        "-m",
        "vergence.pipelines.cli",
        "shards",
        "pack",
        source,
        str(target),
        "--name",
        name,
    ]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return f"{target}/{name}-*.tar"


def pack_parquet(split: str) -> str:
    """All images of a split as shards; a pattern."""
    return pack(f"{cifar10()}/{split}-*.parquet", CACHE / "cifar10", split)


def folder_of(num_images: int, first: int = 0) -> Path:
    """CLASS/NAME.webp of `num_images` images of the training set from the `first` on."""
    import json

    import pyarrow as pa
    import pyarrow.parquet as pq

    target = CACHE / (f"images-{num_images}" if not first else f"images-{first}-{num_images}")
    if (target / "done").exists():
        return target / "train"
    table = pa.concat_tables([pq.read_table(file) for file in sorted(cifar10().glob("train-*.parquet"))])
    classes = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]["label"]["names"]
    for row in table.slice(first, num_images).to_pylist():
        path = target / "train" / classes[row["label"]] / Path(row["img"]["path"]).name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(row["img"]["bytes"])
    (target / "done").touch()
    return target / "train"


def shards_of(num_images: int, first: int = 0) -> str:
    """The same files as shards; a pattern."""
    folder = folder_of(num_images, first)
    return pack(str(folder), CACHE / folder.parent.name.replace("images", "shards"))


def training_part(num_images: int, holdout: float) -> Path:
    """The folder of those files that a run with this holdout trains on."""
    import numpy as np

    from vergence.platform.data.index import open_index
    from vergence.platform.data.plan import HOLDOUT_RULE, Plan

    target = CACHE / f"training-{num_images}-{holdout}-{HOLDOUT_RULE}"
    index = open_index(shards_of(num_images), CACHE / "index")
    plan = Plan(len(index), holdout, 0, 1)
    for i in plan.training_ids(np.arange(plan.num_training)):
        source = folder_of(num_images) / f"{index.key(i)}.{index.image_extension}"
        path = target / index.key(i)
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.with_suffix(source.suffix).exists():
            os.link(source, path.with_suffix(source.suffix))
    return target


def imagenet_shaped() -> str:
    """A set of 1,281,167 samples of ImageNet's usual size: an index whose rows share a few pictures; a pattern.

    Only index and order have that size: the bytes that are read are always those of one small shard.
    """
    import io
    import json

    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq
    from PIL import Image

    from vergence.platform.data.contents import CHUNK
    from vergence.platform.data.index import open_index

    folder = CACHE / "imagenet-shaped"
    if not (folder / "pictures").exists():
        (folder / "pictures").mkdir(parents=True)
        draw = np.random.default_rng(0)
        for i in range(16):
            coarse = Image.fromarray(draw.integers(0, 256, (47, 62, 3), dtype=np.uint8))
            picture = io.BytesIO()
            coarse.resize((500, 375), Image.Resampling.BICUBIC).save(picture, "JPEG", quality=90)
            (folder / "pictures" / f"{i}.jpg").write_bytes(picture.getvalue())
    shards = pack(f"{folder / 'pictures'}", folder / "shards")
    index = open_index(shards, HOME / "index")
    table = pq.read_table(index.path)
    if len(index) < IMAGENET:
        rows = table.take(pa.array(np.arange(IMAGENET) % len(index)))
        keys = pa.array([f"{i:07d}" for i in range(IMAGENET)])
        rows = rows.set_column(rows.schema.get_field_index("key"), "key", keys)
        about = json.loads(table.schema.metadata[b"vergence"])
        about["extensions"] = dict.fromkeys(about["extensions"], IMAGENET)
        rows = rows.replace_schema_metadata({"vergence": json.dumps(about)})
        pq.write_table(rows, index.path, row_group_size=CHUNK, write_statistics=False)
    return shards
