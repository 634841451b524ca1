"""What a method is: the protocol between the objective (plain torch) and the machine that trains it."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, Protocol

from torch import Tensor, nn


class Batch(NamedTuple):
    """One micro-batch, or a rank's whole share (then `views` and `geometry` are empty).

    views: one (n, 3, H, W) channels_last tensor per view, on the device.
    ids: (n,) int64 sample ids, in global batch order.
    fields: other modalities by name; dim 0 is samples.
    geometry: one (n, 5) float32 tensor per view: crop top, left, height, width in source pixels, flip 0|1.
    shuffle: (n,) int64 permutation of the samples for shuffling BN, or None.
    """

    views: Sequence[Tensor]
    ids: Tensor
    fields: Mapping[str, Tensor] = {}
    geometry: Sequence[Tensor] = ()
    shuffle: Tensor | None = None


class Method(Protocol):
    """A self-supervised objective; a concrete method is `class X(nn.Module, Method)`.

    Dim 0 of every tensor in the NamedTuples `out` and `targets` is samples, so that the engine may cut
    the share into micro-batches and put the pieces together again.

    Rules: trainable parameters act only inside `forward`; networks without gradient are frozen fp32
    submodules; schedules are functions of progress, never counters; `criterion` is the only place where
    samples meet. The objective is the mean over ranks of what `criterion` returns.
    """

    encoder: nn.Module  # (n, 3, H, W) -> (n, dim): what is exported
    num_views: ClassVar[int] = 2
    shuffles: ClassVar[bool] = False  # whether batches carry a permutation for shuffling BN

    def forward(self, batch: Batch) -> Any:
        """Embeddings (NamedTuple) of one micro-batch; all trainable parameters act here."""
        ...

    def targets(self, batch: Batch) -> Any:
        """Teacher outputs or keys (NamedTuple) of one micro-batch; called once a step, without gradient."""
        return ()

    def criterion(self, out: Any, targets: Any, batch: Batch) -> Any:
        """Losses (NamedTuple): 0-d `loss` of this rank's share and 0-d metrics, in fp32."""
        ...

    def after_step(self, out: Any, targets: Any, batch: Batch, progress: float) -> None:
        """EMA, queue, bank: once after each optimiser step. progress in [0, 1] is that of the step."""
        return
