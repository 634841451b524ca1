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
REPEATS = 4
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


def shards() -> str:
    """The same as shards; a pattern."""
    return data.pack(str(folder()), data.CACHE / "photo-shards")


def stream() -> "Stream":
    from vergence.platform.augment.presets import ViewSpec
    from vergence.platform.data.index import open_index
    from vergence.platform.data.plan import Plan
    from vergence.platform.data.stream import Stream

    index = open_index(shards(), data.CACHE / "index")
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
    """CPU-milliseconds an image of the training thread, with crops made by readers and with pictures that come whole.

    For a GPU: what the host does, all but the device's operations (a device without values, `meta`, stands for it).
    For a CPU: all, without and with colours.
    """
    import torch

    from vergence.platform.augment.crop import cut
    from vergence.platform.augment.parcel import Parcel
    from vergence.platform.augment.presets import ViewSpec
    from vergence.platform.augment.views import Views
    from vergence.platform.data.index import Index
    from vergence.platform.data.read import Reader

    torch.set_num_threads(1)
    source = stream()
    ids = source.share(0, 0, 1).ids
    found = Reader(Index(source.index)).images(ids)
    pictures = [picture for picture in found if not isinstance(picture, Exception)]
    plain = (ViewSpec(count=2, size=224),)  # crop and flip alone

    def measured(specs: Any, device: str, whole: bool) -> float:
        views = Views(specs, seed=0, mean=MEAN, std=STD, device=device)
        pieces = cut(pictures, ids, 0, specs, 0)
        begin = 0.0
        for number in range(REPEATS + 1):
            begin = begin if number > 1 else time.thread_time()  # the first one warms up
            parcel = Parcel(views.device)
            made = views.prepare(cut(pictures, ids, 0, specs, 0) if whole else pieces, ids, 0, parcel)
            parcel.send()
            if device == "cpu":
                made()
        return 1000 * (time.thread_time() - begin) / (REPEATS * BATCH)

    return {
        f"{what}{end}": partial(measured, specs, device, whole)
        for what, specs, device in (
            ("host's part", source.views, "meta"),
            ("CPU, no colours", plain, "cpu"),
            ("CPU", source.views, "cpu"),
        )
        for end, whole in ((": crops by readers", False), (": pictures come whole", True))
    }


def run(rounds: int, says: Callable[[str], None]) -> dict[str, Any]:
    """Images per CPU-second of the whole tree, and CPU-milliseconds of the training thread."""
    shutil.rmtree(data.HOME / "photos", ignore_errors=True)
    stream()  # packs
    variants: dict[str, Callable[[], Any]] = {
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
        f"training thread, {what}": spread(
            [
                a / b
                for a, b in zip(threads[f"{what}: crops by readers"], threads[f"{what}: pictures come whole"])
            ]
        )
        for what in ("host's part", "CPU, no colours", "CPU")
    }
    return {
        "images_per_cpu_s": {name: spread(values) for name, values in speeds.items()},
        "training_thread_ms_per_image": {name: spread(values) for name, values in threads.items()},
        "ratios": ratios | shares,
        "at_least": {
            "ours / torchvision on PIL": (ratios["ours / torchvision on PIL"]["median"], 1.7),
        },
        "at_most": {"training thread, host's part": (shares["training thread, host's part"]["median"], 0.25)},
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("marks", type=Path)
    parser.add_argument("dtype")
    arguments = parser.parse_args()
    feed(arguments.marks, arguments.dtype)
