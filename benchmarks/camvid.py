"""CMC on three modalities of CamVid: an image, a depth-like map and the segmentation; what the image alone then tells.

OMP_NUM_THREADS=1 .venv-bench/bin/python -m benchmarks.camvid [--epochs 100]

Each frame, 240 x 180, gives 12 patches of 60 x 60 pixels with their maps; the class of a patch, for the kNN, is the most
frequent one in it. So training saw what the classes are made of, as a modality of the training frames: the figure says how
much of it the image's network has taken over, on frames of the test set. Results are kept as JSON.

There is no depth in CamVid. The map is made from the segmentation: a pixel is as far as the ground (road, pavement) below it
in its column, whose distance goes with 1 / (row - horizon); sky is farthest; what stands on no ground in sight is unknown.
Every tenth frame has no depth at all.
"""

import argparse
import io
import json
import os
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from webdataset import TarWriter

from benchmarks import alone, data

WIDTH, HEIGHT, SIDE = 240, 180, 60
SKY, GROUND, UNKNOWN = 0, (3, 4), 255  # road, pavement
FAILED = 10  # every tenth frame has no depth, as if the sensor had failed
CLASSES = [
    "sky",
    "building",
    "pole",
    "road",
    "pavement",
    "tree",
    "sign",
    "fence",
    "car",
    "pedestrian",
    "bicyclist",
    "void",
]
RESULTS = Path("benchmarks/results/camvid.json")


def depth_of(classes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(H, W) classes -> (H, W): 0 at the lower edge, 254 at the horizon and in the sky, UNKNOWN."""
    height = len(classes)
    horizon = int(0.4 * height)  # of the camera in the car
    rows = np.arange(height)
    near = (height - horizon) / np.maximum(rows - horizon, 1) - 1  # 0 at the lower edge
    by_row = np.rint(254 * np.minimum(near / 9, 1)).astype(np.uint8)
    ground = np.isin(classes, GROUND) & (rows[:, None] > horizon)
    depth = np.full(classes.shape, UNKNOWN, np.uint8)
    below = np.full(classes.shape[1], UNKNOWN, np.uint8)
    for row in rows[::-1]:
        below = np.where(ground[row], by_row[row], below)
        depth[row] = np.where(classes[row] == SKY, 254, below)
    return depth


def pack(split: str) -> str:
    """Shards of a split, made once; a pattern."""
    folder = data.CACHE / "camvid"
    shard = folder / f"{split}-000000.tar"
    if not shard.exists():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "classes.json").write_text(json.dumps(CLASSES))
        shared = Path(os.environ.get("VERGENCE_SHARED", "shared")) / "data/camvid/camvid.zip"
        draft = shard.with_suffix(".part")
        with zipfile.ZipFile(shared) as archive, TarWriter(str(draft), encoder=False, mtime=0) as writer:
            names = sorted(n for n in archive.namelist() if n.startswith(f"{split}/images/"))
            for number, name in enumerate(names):
                mask = name.replace("images", "masks").replace(".jpg", ".png")
                frame = _read(archive, name, Image.Resampling.BOX).convert("RGB")
                classes = np.array(_read(archive, mask, Image.Resampling.NEAREST))
                depth = depth_of(classes) if number % FAILED else np.full_like(classes, UNKNOWN)
                maps = np.stack([depth, classes], axis=-1)
                for top in range(0, HEIGHT, SIDE):
                    for left in range(0, WIDTH, SIDE):
                        patch = maps[top : top + SIDE, left : left + SIDE]
                        picture, array = io.BytesIO(), io.BytesIO()
                        frame.crop((left, top, left + SIDE, top + SIDE)).save(picture, "PNG")
                        np.save(array, patch)
                        label = np.bincount(patch[..., 1].ravel()).argmax()
                        members = {"png": picture, "npy": array}
                        writer.write(
                            {"__key__": f"{Path(name).stem}-{top:03d}-{left:03d}", "cls": str(label).encode()}
                            | {kind: file.getvalue() for kind, file in members.items()}
                        )
        draft.rename(shard)
    return f"{folder}/{split}-*.tar"


def _read(archive: zipfile.ZipFile, name: str, how: Image.Resampling) -> Image.Image:
    return Image.open(io.BytesIO(archive.read(name))).resize((WIDTH, HEIGHT), how)


def main() -> None:
    from vergence.pipelines.evaluate import evaluate
    from vergence.pipelines.recipe import load_recipe
    from vergence.platform.home import home
    from vergence.platform.runs import records

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    os.environ["VERGENCE_HOME"] = str(data.CACHE / "camvid" / "home")
    train, test = pack("train"), pack("test")
    settings = [f"data.train={train}", f"epochs={options.epochs}", "track.register=null", "data.holdout=0"]
    recipe = load_recipe("cmc-camvid", [*settings, "track.every_steps=1"])
    name, before = f"cmc-{recipe.digest()}", time.process_time()
    if alone.train(name, recipe):
        raise SystemExit("the run failed")
    cpu_s = round(time.process_time() - before)
    lines = (home() / name / "logs" / "metrics.jsonl").read_bytes().splitlines()
    steps = [each.values for line in lines if isinstance(each := records.parse(line), records.Metrics)]
    report = evaluate(name, train, test, seeds=3, device="cpu")
    found: dict[str, Any] = {
        "epochs": options.epochs,
        "cpu_s": cpu_s,
        "knn-v1": {
            who: figures["knn-v1"].model_dump(exclude_none=True) for who, figures in report.results.items()
        },
        **{key: [steps[0][key], steps[-1][key]] for key in ("loss", "accuracy")},  # first step, last step
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
