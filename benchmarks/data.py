"""CIFAR-10 for the benchmarks: the same encoded files as a folder (peers) and as shards (ours)."""

import os
import subprocess
import sys
from pathlib import Path

CACHE = Path("build/bench").absolute()


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


def folder_of(num_images: int) -> Path:
    """class/NAME.webp of the first images of the training set."""
    import pyarrow.parquet as pq

    target = CACHE / f"images-{num_images}"
    if (target / "done").exists():
        return target / "train"
    left = num_images
    for file in sorted(cifar10().glob("train-*.parquet")):
        for row in pq.read_table(file).slice(0, left).to_pylist():
            path = target / "train" / str(row["label"]) / Path(row["img"]["path"]).name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(row["img"]["bytes"])
            left -= 1
    (target / "done").touch()
    return target / "train"


def shards_of(num_images: int) -> str:
    """The same files as shards; a pattern."""
    return pack(str(folder_of(num_images)), CACHE / f"shards-{num_images}")


def training_part(num_images: int, holdout: float) -> Path:
    """The folder of those files that a run with this holdout trains on."""
    import numpy as np

    from vergence.platform.data.index import open_index
    from vergence.platform.data.plan import Plan

    target = CACHE / f"training-{num_images}-{holdout}"
    index = open_index(shards_of(num_images), CACHE / "index")
    plan = Plan(len(index), holdout, 0, 1)
    for i in plan.training_ids(np.arange(plan.num_training)):
        source = folder_of(num_images) / f"{index.key(i)}.{index.image_extension}"
        path = target / index.key(i)
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.with_suffix(source.suffix).exists():
            os.link(source, path.with_suffix(source.suffix))
    return target
