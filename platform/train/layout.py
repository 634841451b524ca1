"""How a global batch lies on the ranks: a pure function, called alike by the driver and by each rank."""

from collections.abc import Mapping
from typing import Literal, NamedTuple

from vergence.platform.errors import UserError
from vergence.platform.runs.facts import RunFacts
from vergence.platform.train import memory, norms
from vergence.platform.train.engine import Precision
from vergence.platform.train.exact import BatchConfig, Regime
from vergence.platform.train.machine import Machine
from vergence.platform.train.norms import NormConfig

MEMORY_SHARE = 0.6  # of what is free, for activations


class LayoutSpec(NamedTuple):
    """What the recipe, the method and earlier attempts say; plain and picklable."""

    batch: BatchConfig
    norm: NormConfig
    shuffles: bool  # whether the method permutes samples within norm.span
    precision: Literal["auto", "fp32", "bf16"]
    on_gpu: bool
    bytes_per_sample: Mapping[Precision, int]  # that a forward keeps, in each precision that may be chosen
    kept: RunFacts = RunFacts()  # precision, regime, micro-batch and span of earlier attempts stay


class Layout(NamedTuple):
    share: int  # samples of the global batch on one rank
    micro: int  # samples a forward; divides the share
    regime: Regime
    precision: Precision
    norm_group: int | Literal["global"]  # samples that share batch-norm statistics
    norm_span: int | None  # samples within which shuffling BN permutes
    num_bytes: int  # estimate of what is kept for the backward
    budget: int  # bytes it was chosen for


def layout(spec: LayoutSpec, world_size: int, machine: Machine) -> Layout:
    """Share, micro-batch, regime, precision, norm groups and memory of each of `world_size` ranks.

    Raises UserError: the batch does not divide, norm groups do not fit it, or nothing is measured and the recipe
    leaves it open.
    """
    share = share_of(spec.batch, world_size)
    precision = precision_of(spec.precision, spec.kept, machine)
    norm = spec.norm.for_method(spec.shuffles)
    span = norm.span or spec.kept.span
    free_bytes = _free_bytes(spec, machine)
    choice = memory.choose(
        _as_before(spec.batch, spec.kept, share),
        share=share,
        group=norm.group if isinstance(norm.group, int) else spec.batch.global_batch,
        bytes_per_sample=spec.bytes_per_sample[precision],
        budget=int(MEMORY_SHARE * free_bytes),
        span=span or 1,
    )
    if spec.shuffles:
        norm = norm.model_copy(update={"span": span or choice.micro})
    norms.validate(norm, share=share, micro=choice.micro, global_batch=spec.batch.global_batch)
    return Layout(
        share,
        choice.micro,
        choice.regime,
        precision,
        norm.group or "global",
        norm.span,
        choice.num_bytes,
        choice.budget,
    )


def share_of(batch: BatchConfig, workers: int) -> int:
    """A rank's part of the global batch; UserError naming the nearest batches that divide."""
    share, rest = divmod(batch.global_batch, workers)
    if rest:
        nearest = [share * workers, (share + 1) * workers]
        raise UserError(
            f"batch.global {batch.global_batch} does not divide by {workers} workers; "
            f"nearest: {', '.join(str(size) for size in nearest if size)}"
        )
    return share


def precision_of(asked: Literal["auto", "fp32", "bf16"], kept: RunFacts, machine: Machine) -> Precision:
    """What is asked for; auto: that of earlier attempts, else bf16 where the machine computes it natively."""
    if asked != "auto":
        return asked
    return kept.precision or ("bf16" if machine.native_bf16 else "fp32")


def _free_bytes(spec: LayoutSpec, machine: Machine) -> int:
    if not spec.on_gpu:
        return machine.host_bytes
    if machine.gpu_bytes is not None:
        return machine.gpu_bytes
    if spec.precision == "auto" or spec.batch.micro is None or spec.batch.regime == "auto":
        raise UserError(
            "scale.gpus_per_worker=1, but no GPU can be measured (nvidia-smi does not answer): give "
            "precision=bf16 or fp32, batch.micro, and batch.regime=one, kept or two-pass"
        )
    return 0


def _as_before(config: BatchConfig, kept: RunFacts, share: int) -> BatchConfig:
    """With the regime and micro-batch of an earlier attempt, where the recipe leaves them open and they fit."""
    whole = config.micro in (None, share)  # a smaller micro-batch than before rules out one forward
    if config.regime == "auto" and kept.regime is not None and (whole or kept.regime != "one"):
        config = config.model_copy(update={"regime": kept.regime})
    if config.micro is None and kept.micro is not None and kept.regime != "one" and share % kept.micro == 0:
        config = config.model_copy(update={"micro": kept.micro})
    return config
