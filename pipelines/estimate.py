"""How long training will take on this machine, from a few steps of its model timed here."""

import time

import torch

from vergence.methods.method import Batch, Method, num_large
from vergence.pipelines.resolve import Resolved, sizes_of
from vergence.platform.cluster.capacity import physical_cpus

ROWS = 64  # images of a timed step, at most
START_CPU_S = 30.0  # of a start: processes, imports, the model
REST = 1.3  # views, optimiser and records cost a third of forward and backward


def cpu_s_per_image(resolved: Resolved, method: Method) -> float | None:
    """CPU-seconds of training on one image; None where this process cannot tell: GPUs train, or images are not all."""
    if resolved.need.scale.gpus_per_worker or method.needs.fields:
        return None
    rows, sides = min(ROWS, resolved.layout.micro), sizes_of(resolved.recipe)
    views = [torch.randn(rows, 3, side, side).to(memory_format=torch.channels_last) for side in sides]
    batch = Batch(views=views, ids=torch.arange(rows), fields={}, num_large=num_large(sides))
    bf16 = resolved.layout.precision == "bf16"
    method.train()
    seconds = []
    for _ in range(3):
        began = time.process_time()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            out = method(batch)
            targets = method.targets(batch)
        method.criterion(out, targets, batch).loss.backward()
        seconds.append(time.process_time() - began)
    return REST * min(seconds) / rows


def hours(cpu_s: float, images: int, starts: int, threads: int) -> float:
    """Of a search on this machine. threads: that train at the same time."""
    return (images * cpu_s + starts * START_CPU_S) / min(threads, physical_cpus()) / 3600
