"""On a GPU, without Ray: a SimCLR step on ResNet-50, 224 px, bf16, batch 256, and the share that its views take.

The pictures are in host memory as readers send them, cut to uint8 crops of 224 px. `bare loop` is the same network and
loss under plain torch (autocast, channels_last, SGD fused), on views that are at hand.
"""

import itertools
import time
import warnings
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import data, photos
from benchmarks.measure import interleaved, spread

if TYPE_CHECKING:
    from vergence.platform.data.share import Share

BATCH, SHARES, STEPS = 256, 3, 12
DEVICE = "cuda"
SETTINGS = [
    "encoder={name: resnet50}", "views=[{count: 2, size: 224, recipe: simclr}]", "data.holdout=0", "epochs=100",
    f"batch={{global: {BATCH}, micro: {BATCH}, regime: one}}", "norm.group=global", "method.hidden_dim=2048",
    "precision=bf16", "scale={workers: 1, gpus_per_worker: 1}",
]  # fmt: skip


def run(rounds: int, says: Callable[[str], None]) -> dict[str, Any]:
    import numpy as np
    import torch

    from vergence.pipelines.recipe import build_method, load_recipe
    from vergence.pipelines.resolve import data_facts, resolve
    from vergence.platform.data.index import open_index
    from vergence.platform.runs.run import Run, locked
    from vergence.platform.train.loop import RankLoop

    recipe = load_recipe("simclr-cifar10", [f"data.train={photos.shards()}", *SETTINGS])
    index = open_index(recipe.data.train, data.CACHE / "index")
    facts = data_facts(recipe, index)
    resolved = resolve(recipe, index, build_method(recipe, facts))
    run_folder = Run("gpu")
    run_folder.logs.mkdir(parents=True, exist_ok=True)
    says(f"{torch.cuda.get_device_name()}, torch {torch.__version__}; {resolved.layout}")
    loop = RankLoop(resolved.job(run_folder, {}))
    shares = [resolved.stream.share(step, 0, 1) for step in range(SHARES)]
    made = [loop._micros(share, 0)[0] for share in shares]
    batches = loop._batches(itertools.cycle(shares))
    method = build_method(recipe, facts).to(DEVICE).train()
    method.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(method.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, fused=True)

    def train(share: "Share", micros: Any) -> None:
        first = loop.step * BATCH
        loop._train_step(share._replace(positions=np.arange(first, first + BATCH)), micros)
        loop.step += 1

    def step(number: int) -> None:
        train(*next(batches))

    def step_at_hand(number: int) -> None:
        train(shares[number % SHARES], [made[number % SHARES]])

    def bare(number: int) -> None:
        batch = made[number % SHARES]
        with torch.autocast(DEVICE, torch.bfloat16):
            out = method(batch)
        loss = method.criterion(out, (), batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    def views(number: int) -> None:
        loop._micros(shares[number % SHARES], 0)[0]

    with locked(run_folder):
        variants = {
            "our step": step, "our step, views at hand": step_at_hand, "bare loop, views at hand": bare,
            "views alone": views,
        }  # fmt: skip
        for variant in variants.values():
            variant(0)
        waits = host_waits(partial(step, 1))
        says(f"the host waits in a step: {dict(waits)}")
        times = interleaved({name: partial(seconds, each) for name, each in variants.items()}, rounds, says)
    rates = {name: spread([STEPS * BATCH / s for s in values]) for name, values in times.items()}
    ours, at_hand, plain = (times[name] for name in list(variants)[:3])
    share = spread([(a - b) / a for a, b in zip(ours, at_hand)])
    ratio = spread([a / b for a, b in zip(plain, at_hand)])
    return {
        "images_per_s": rates,
        "ratios": {"our step / bare loop, views at hand": ratio, "share of the step in the views": share},
        "host_waits": dict(waits),
        "at_least": {"our step / bare loop, views at hand": (ratio["median"], 0.95)},
        "at_most": {"share of the step in the views": (share["median"], 0.08)},
    }


def seconds(variant: Callable[[int], None]) -> float:
    """Of STEPS steps, until the device has done them."""
    import torch

    torch.cuda.synchronize()
    begin = time.perf_counter()
    for number in range(STEPS):
        variant(number)
    torch.cuda.synchronize()
    return time.perf_counter() - begin


def host_waits(step: Callable[[], None]) -> Counter[str]:
    """Where the host waits for the device in a step, and how often: innermost line of ours."""
    import traceback

    import torch

    found: Counter[str] = Counter()

    def note(message: Any, *_: Any, **__: Any) -> None:
        frames = [
            f for f in traceback.extract_stack() if "/platform/" in f.filename or "/methods/" in f.filename
        ]
        if "synchroniz" in str(message):
            found[f"{Path(frames[-1].filename).name}:{frames[-1].name}" if frames else "elsewhere"] += 1

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = note
        torch.cuda.set_sync_debug_mode("warn")
        try:
            step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return found
