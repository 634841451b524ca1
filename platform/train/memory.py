"""How much memory a forward keeps for its backward, and what micro-batch and regime follow from it."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vergence.methods.method import Batch, Method
from vergence.platform.errors import UserError
from vergence.platform.train.exact import BatchConfig, Regime
from vergence.platform.train.norms import divisors, nearest_of

SIZES = (2, 4)  # samples of the forwards that are measured


class Choice(NamedTuple):
    micro: int  # samples per forward
    regime: Regime
    num_bytes: int  # estimate of what the chosen regime keeps for the backward
    budget: int  # bytes it was chosen for


def activation_bytes_per_sample(
    method: Method,
    batch_fn: Callable[[int], Batch],
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> int:
    """Bytes that autograd saves per sample in `method.forward`, views included.

    batch_fn(n) makes a batch of n samples of the run's shapes. The difference between the two SIZES is taken, so
    that what does not grow with them (weights, their bf16 copies) drops out. Runs in eval mode: nothing is drawn
    and no statistics are touched.
    """
    training = method.training
    method.eval()
    try:
        small, large = (_saved_bytes(method, batch_fn(n), autocast) for n in SIZES)
    finally:
        method.train(training)
    return max(0, large - small) // (SIZES[1] - SIZES[0])


def _saved_bytes(method: Method, batch: Batch, autocast: Callable[[], AbstractContextManager[Any]]) -> int:
    """Bytes of all distinct storages saved for backward in one forward, and of the views."""
    storages: dict[int, torch.UntypedStorage] = {}  # kept alive, so that no address is used twice

    def pack(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        storages[storage.data_ptr()] = storage
        return x

    for view in batch.views:
        pack(view)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x), torch.enable_grad(), autocast():
        method(batch)
    return sum(storage.nbytes() for storage in storages.values())


def choose(
    config: BatchConfig, *, share: int, group: int, bytes_per_sample: int, budget: int, span: int = 1
) -> Choice:
    """Micro-batch and regime whose estimate fits `budget` bytes, as large as possible.

    A micro-batch divides the share and is a multiple of group (samples that share norm statistics; the share
    itself if the group is larger) and of span. If nothing fits, the smallest valid one is taken. Raises
    UserError if batch.micro does not divide the share, or contradicts batch.regime.
    """
    # The peak is near twice what is saved: backward's gradients and buffers come on top.
    cost = 2 * max(1, bytes_per_sample)
    micro = config.micro
    if micro is None:
        unit = min(group, share) if share % min(group, share) == 0 else share
        valid = [m for m in divisors(share) if m % unit == 0 and m % span == 0] or [share]
        fitting = [m for m in valid if m * cost <= budget] or valid[:1]
        micro = share if config.regime == "one" else max(fitting)
    elif share % micro:
        raise UserError(
            f"batch.micro {micro} does not divide a worker's share of {share} samples; "
            f"nearest: {nearest_of(micro, divisors(share))}"
        )
    regime = config.regime
    if regime == "one" and micro < share:
        raise UserError(
            f"batch.regime one needs one forward of the whole share, got batch.micro {micro} of {share}; "
            f"use batch.micro={share}, or batch.regime=kept or two-pass"
        )
    if regime == "auto":
        regime = "one" if micro == share else "kept" if share * cost <= budget else "two-pass"
    return Choice(micro, regime, cost * (micro if regime == "two-pass" else share), budget)
