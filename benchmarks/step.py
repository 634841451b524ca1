"""Our training step against the same step in a bare loop: images per CPU-second, batches in memory."""

import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks import data
from benchmarks.measure import interleaved, spread

NUM_IMAGES, STEPS = 10_000, 12


def run(rounds: int, says: Callable[[str], None]) -> dict[str, Any]:
    from vergence.pipelines.recipe import build_method, load_recipe
    from vergence.pipelines.resolve import data_facts, resolve
    from vergence.platform.augment.views import Views
    from vergence.platform.data.index import open_index
    from vergence.platform.runs.run import Run, locked
    from vergence.platform.train.loop import RankLoop
    from vergence.platform.train.machine import measure
    from vergence.platform.train.micro import Micros

    torch.set_num_threads(1)
    precision = "bf16" if measure(1, gpus=False).native_bf16 else "fp32"
    settings = [
        f"data.train={data.shards_of(NUM_IMAGES)}", "data.holdout=0", "epochs=100", "batch.global=256",
        "norm.group=256", "scale.workers=1", f"precision={precision}",
    ]  # fmt: skip
    recipe = load_recipe("simclr-cifar10", settings)
    index = open_index(recipe.data.train, data.CACHE / "index")
    facts = data_facts(recipe, index)
    resolved = resolve(recipe, index, build_method(recipe, facts))
    stream = resolved.stream

    run_folder = Run("step")
    run_folder.logs.mkdir(parents=True, exist_ok=True)
    loop = RankLoop(resolved.job(run_folder, {}))
    shares = [stream.share(step, 0, 1) for step in range(STEPS)]

    def ours() -> float:
        begin = time.process_time()
        for share in shares:
            positions = share.positions - share.positions[0] + loop.step * 256
            loop._train_step(share._replace(positions=positions), loop._micros(share, loop.step))
            loop.step += 1
        return STEPS * 256 / (time.process_time() - begin)

    method = build_method(recipe, facts).train()
    method.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    parameters = [parameter for parameter in method.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=5e-4, fused=True)
    device = torch.device("cpu")
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    views = Views(recipe.views, seed=0, mean=recipe.data.mean, std=recipe.data.std, dtype=dtype)

    def bare() -> float:
        begin = time.process_time()
        for share in shares:
            batch = Micros(
                share, 256, views=views, epoch=0, progress=0.0, shuffle=lambda _: None, device=device
            )[0]
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                out = method(batch)
            loss = method.criterion(out, (), batch).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        return STEPS * 256 / (time.process_time() - begin)

    with locked(run_folder):
        ours(), bare()
        results = interleaved({"our step": ours, "bare loop": bare}, max(rounds, 5), says)
    ratio = spread([a / b for a, b in zip(results["our step"], results["bare loop"])])
    return {
        "images_per_cpu_s": {name: spread(values) for name, values in results.items()},
        "ratios": {"our step / bare loop": ratio},
        "at_least": {"our step / bare loop": (ratio["median"], 0.95)},
    }
