"""Photos: JPEG bytes to two views of 224 on the device, Ray included, against torchvision on PIL and a DataLoader.

And what of it is left on the training thread, beside what was there when pictures travelled whole.
"""

import argparse
import itertools
import json
import shutil
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import data
from benchmarks.measure import Speed, interleaved, spread, steady_speed

if TYPE_CHECKING:
    from vergence.platform.data.stream import Stream

NUM_IMAGES, BATCH = 4000, 64
FIRST, STEPS = 12, 24  # past what was read ahead
MARKS = data.CACHE / "photos.jsonl"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def folder() -> Path:
    """The photographs again and again, as files of a class each: 4,000 in all."""
    target = data.CACHE / "photos"
    if not (target / "done").exists():
        with zipfile.ZipFile(data.cifar10().parent / "photos" / "photos.zip") as archive:
            names = sorted(name for name in archive.namelist() if name.lower().endswith((".jpg", ".jpeg")))
            for number, name in zip(range(NUM_IMAGES), itertools.cycle(names)):
                path = target / "train" / "all" / f"{number:05d}.jpg"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(archive.read(name))
        (target / "done").touch()
    return target / "train"


def stream() -> "Stream":
    from vergence.platform.augment.presets import ViewSpec
    from vergence.platform.data.index import open_index
    from vergence.platform.data.plan import Plan
    from vergence.platform.data.stream import Stream

    index = open_index(data.pack(str(folder()), data.CACHE / "photo-shards"), data.CACHE / "index")
    views = (ViewSpec(count=2, size=224, recipe="simclr"),)
    return Stream(index.path, Plan(len(index), 0.0, 0, BATCH), 100, views, (), 50_000_000).measured()


def batches(shares: Iterator[Any], views: Any) -> Iterator[float]:
    """Makes the views of each share; CPU-seconds of this thread for each."""
    import torch

    from vergence.platform.train.micro import Micros

    for share in shares:
        begin = time.thread_time()
        micros = Micros(
            share,
            BATCH,
            views=views,
            epoch=0,
            progress=0.0,
            shuffle=lambda _: None,
            device=torch.device("cpu"),
        )
        assert micros[0].views[0].shape == (BATCH, 3, 224, 224)
        yield time.thread_time() - begin


def views_of(specs: Any, dtype: str) -> Any:
    import torch

    from vergence.platform.augment.views import Views

    return Views(specs, seed=0, mean=MEAN, std=STD, dtype=getattr(torch, dtype))


def feed(marks: Path, dtype: str) -> None:
    """Our input alone: Ray Data's readers, and a consumer that makes the views."""
    import ray.data
    import torch

    from vergence.platform.cluster.capacity import Need, ScaleConfig
    from vergence.platform.cluster.feed import Feed
    from vergence.platform.cluster.session import opened
    from vergence.platform.data.config import DataConfig

    torch.set_num_threads(1)
    source = stream()
    with opened(Need(ScaleConfig(workers=1), readers=1, reader_cpus=1.0)), marks.open("w") as file:
        ray.data.DataContext.get_current().enable_progress_bars = False
        shares = iter(Feed(source, DataConfig(train=""), 0, 1, 0))
        for step, _ in enumerate(batches(shares, views_of(source.views, dtype))):
            file.write(json.dumps({"step": step, "time": time.time()}) + "\n")
            file.flush()


def speed(command: list[str]) -> Speed:
    env = {"OMP_NUM_THREADS": "1", "VERGENCE_HOME": str(data.HOME)}
    return steady_speed([sys.executable, "-m", *command], MARKS, FIRST, FIRST + STEPS, BATCH, env)


def training_thread() -> dict[str, Callable[[], float]]:
    """CPU-milliseconds an image of making views: with crops made by readers, and from pictures that come whole."""
    import numpy as np
    import torch

    from vergence.platform.augment.crop import cut
    from vergence.platform.augment.presets import ViewSpec
    from vergence.platform.data.index import Index
    from vergence.platform.data.read import Reader

    torch.set_num_threads(1)
    source = stream()
    share = source.share(0, 0, 1)
    pictures = Reader(Index(source.index)).images(share.ids)
    plain = (ViewSpec(count=2, size=224),)  # no colours: what is left is crop, resize, flip, normalise

    def with_crops(specs: Any) -> float:
        pieces = share._replace(pictures=cut(pictures, share.ids, 0, specs, 0))  # type: ignore[arg-type]
        return 1000 * sum(batches(iter([pieces] * 4), views_of(specs, "float32"))) / (4 * BATCH)

    def whole(specs: Any) -> float:
        views, begin = views_of(specs, "float32"), time.thread_time()
        for _ in range(4):
            views(pictures, np.array(share.ids), 0)
        return 1000 * (time.thread_time() - begin) / (4 * BATCH)

    return {
        "crops by readers, without colour": partial(with_crops, plain),
        "pictures that come whole, without colour": partial(whole, plain),
        "crops by readers": partial(with_crops, source.views),
        "pictures that come whole": partial(whole, source.views),
    }


def run(rounds: int, says: Callable[[str], None]) -> dict[str, Any]:
    """Images per CPU-second of the whole tree, and CPU-milliseconds of the training thread."""
    shutil.rmtree(data.HOME / "photos", ignore_errors=True)
    stream()  # packs
    variants = {
        "ours": partial(speed, ["benchmarks.photos", str(MARKS), "float32"]),
        "ours, bf16 views": partial(speed, ["benchmarks.photos", str(MARKS), "bfloat16"]),
        "torchvision on PIL": partial(speed, ["benchmarks.torchvision_views", str(folder()), str(MARKS)]),
    }
    results = interleaved(variants, rounds, says)
    threads = interleaved(training_thread(), rounds, says)
    speeds = {name: [each.images_per_cpu_s for each in rows] for name, rows in results.items()}
    peer = speeds["torchvision on PIL"]
    ratios = {
        f"{name} / torchvision on PIL": spread([a / b for a, b in zip(speeds[name], peer)])
        for name in ("ours", "ours, bf16 views")
    }
    shares = {
        f"training thread{end}": spread([a / b for a, b in zip(threads[ours], threads[before])])
        for end, ours, before in (
            (", without colour", *list(threads)[:2]),
            ("", *list(threads)[2:]),
        )
    }
    return {
        "images_per_cpu_s": {name: spread(values) for name, values in speeds.items()},
        "training_thread_ms_per_image": {name: spread(values) for name, values in threads.items()},
        "ratios": ratios | shares,
        "at_least": {
            "ours / torchvision on PIL": (ratios["ours / torchvision on PIL"]["median"], 1.7),
        },
        "at_most": {
            "training thread, without colour": (shares["training thread, without colour"]["median"], 0.25)
        },
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("marks", type=Path)
    parser.add_argument("dtype")
    arguments = parser.parse_args()
    feed(arguments.marks, arguments.dtype)
