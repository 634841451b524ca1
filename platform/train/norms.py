"""Batch normalisation over groups of samples: statistics depend on neither micro-batch nor rank count.

Methods write plain `nn.BatchNorm1d/2d`; `install` replaces them. Statistics are taken over runs of `group`
consecutive samples, by position in the global batch: groups within a micro-batch need no communication,
larger ones are synchronised over the ranks that share them. Running statistics never change inside a
forward: they are collected in scratch buffers and applied once per optimiser step.
Shape suffixes: V views, n samples, R = V * n rows (view-major), C channels.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any, Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from pydantic import BaseModel, Field, PositiveInt
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from vergence.methods import collectives
from vergence.platform.errors import UserError
from vergence.platform.train.alike import Seen, Usual
from vergence.platform.train.batch_norm import Groups, Normalise, over_ranks, statistics
from vergence.platform.train.norm_check import KNOWN, is_groupable, unknown

Group = int | Literal["global"]
SHUFFLING_GROUP = 32  # samples a GPU of MoCo's own runs (8 GPUs, batch 256)


class NormConfig(BaseModel, frozen=True, extra="forbid", strict=True):
    group: Annotated[int, Field(ge=2)] | Literal["global"] | None = Field(
        default=None,
        description="samples that share batch-norm statistics: a divisor of batch.micro, or a multiple of a "
        "worker's share up to `global` (the whole batch; synchronised, needs batch.micro = share); default: "
        "global, and 32 for methods that shuffle",
    )
    span: PositiveInt | None = Field(
        default=None,
        description="samples within which shuffling BN permutes: a multiple of group that divides "
        "batch.micro; default batch.micro",
    )

    def for_method(self, shuffles: bool) -> "NormConfig":
        """With the default group filled in, for a method that does or does not shuffle."""
        default = SHUFFLING_GROUP if shuffles else "global"
        return self if self.group is not None else self.model_copy(update={"group": default})


def validate(config: NormConfig, *, share: int, micro: int, global_batch: int) -> None:
    """Raises UserError with the nearest valid values if the groups do not fit the batch.

    config: with its group filled in; share: samples of the global batch on one rank; micro: samples per
    forward, a divisor of share.
    """
    assert config.group is not None, "see for_method"
    group, span = global_batch if config.group == "global" else config.group, config.span
    if group <= micro:
        if micro % group:
            raise UserError(
                f"norm.group {group} does not divide the micro-batch of {micro} samples; "
                f"nearest: {nearest_of(group, divisors(micro))}"
            )
    elif micro < share:
        raise UserError(
            f"norm.group {config.group} is larger than the micro-batch of {micro} samples, and statistics "
            f"over several micro-batches are not exact: use batch.micro={share} (the share) or a group that "
            f"divides {micro} (nearest: {nearest_of(group, divisors(micro))})"
        )
    elif group % share or global_batch % group:
        valid = [d for d in divisors(global_batch) if d % share == 0] + divisors(share)
        raise UserError(
            f"norm.group {group} must divide a worker's share of {share} samples, or be a multiple of it "
            f"that divides batch.global {global_batch}; nearest: {nearest_of(group, valid)}"
        )
    if span is not None and (span % group or micro % span):
        valid = [d for d in divisors(micro) if d % group == 0]
        hint = f"nearest: {nearest_of(span, valid)}" if valid else "such groups leave no room for shuffling"
        raise UserError(
            f"norm.span {span} must be a multiple of norm.group {config.group} and divide the micro-batch of "
            f"{micro} samples; {hint}"
        )


def divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]


def nearest_of(value: int, valid: list[int]) -> str:
    """The valid values next to `value`, below and above."""
    below = max((v for v in valid if v <= value), default=None)
    above = min((v for v in valid if v >= value), default=None)
    return ", ".join(str(v) for v in dict.fromkeys((below, above)) if v is not None)


class GroupedBatchNorm(_BatchNorm):
    """Batch norm over groups of samples; parameter, buffer and child names are those of what it replaces.

    In training mode it works only inside `Norms.samples`; in eval mode it uses the running statistics.
    """

    def __init__(self, source: _BatchNorm, norms: "Norms") -> None:
        super().__init__(
            source.num_features, source.eps, source.momentum, affine=False, track_running_stats=False
        )
        self.affine, self.track_running_stats = source.affine, source.track_running_stats
        self.training = source.training
        for name, parameter in source.named_parameters(recurse=False):
            self.register_parameter(name, parameter)
        for name, buffer in source.named_buffers(recurse=False):
            self.register_buffer(name, buffer)
        for name, child in source.named_children():  # timm's BatchNormAct2d: drop, act
            self.add_module(name, child)
        self.norms = norms
        self.number = 0  # among norms.layers
        self.count = 0  # groups collected since the last update
        self.scratch: tuple[Tensor, Tensor] | None = None  # their mean and mean unbiased variance, (C,) each

    def _check_input_dim(self, input: Tensor) -> None:
        """Any shape with channels in dim 1."""

    def forward(self, input: Tensor) -> Tensor:
        if self.training or self.running_mean is None:
            y = self._grouped(input)
        else:
            y = F.batch_norm(
                input, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
            )
        for child in self.children():
            y = child(y)
        return y

    def _grouped(self, x: Tensor) -> Tensor:
        norms, n = self.norms, self.norms.n
        assert n, "a batch norm in training mode runs only inside norms.samples(n)"
        assert len(x) % n == 0, f"{len(x)} rows are not whole views of {n} samples"
        assert n % norms.group == 0, f"a forward of {n} samples is not a multiple of norm.group {norms.group}"
        groups = Groups(n, norms.group)
        parts = groups.parts(x)
        means, variances = statistics(parts)
        rows = len(parts[0]) * parts[0][0].numel() // x.shape[1]
        if norms.peers is not None:
            means, variances = over_ranks(means, variances, norms.peers)
            rows *= dist.get_world_size(norms.peers)
        if norms.collect and self.scratch is not None:
            norms.collected(self, means, variances, rows / max(rows - 1, 1))
        passes = norms.noted(self, means, variances) if torch.is_grad_enabled() else None
        y: Tensor = Normalise.apply(
            x, self.weight, self.bias, means, variances, passes, groups, self.eps, norms.peers
        )
        return y


class Norms:
    """All batch norms of a method: the samples of the current forward, and the running statistics."""

    def __init__(self, group: int, peers: dist.ProcessGroup | None) -> None:
        """group: samples, within a share; peers: the process group that shares one larger group, or None."""
        self.group, self.peers = group, peers
        self.layers: list[Any] = []  # GroupedBatchNorm, whose buffers torch types as optional
        self.n, self.collect = 0, False
        self._usual = Usual(self.layers)
        self._seen: list[Seen] = []  # of the step's forwards with graph, in place of one that is under way
        self._collected: list[tuple[Any, Tensor, Tensor, float]] = []  # of the forward under way
        self._flat: Tensor | None = None  # scratch of all layers, one storage

    @contextmanager
    def samples(self, n: int, collect: bool) -> Iterator[None]:
        """Around one forward of n samples; `collect`: its statistics count for the running ones."""
        if collect and self._flat is None:
            self._allocate()
        self.n, self.collect = n, collect
        if torch.is_grad_enabled():
            self._seen.append(Seen(self._usual))
        try:
            yield
        finally:
            self.n, self.collect = 0, False
            self._collect()

    def noted(self, layer: Any, means: Tensor, variances: Tensor) -> Callable[[], Tensor]:
        """What tells, in the backward, which groups (G, C) of a layer gradient passes: (G,) bool."""
        seen = self._seen[-1]
        place = seen.note(layer.number, means, variances)
        return lambda: seen.passes[place]

    def alike_samples(self) -> list[int]:
        """Places in the share of the samples that gave no gradient to the step under way."""
        alike = [each for seen in self._seen if (each := seen.alike) is not None]
        if not alike:
            return []
        return torch.cat(alike).repeat_interleave(self.group).nonzero().flatten().tolist()

    def collected(self, layer: Any, means: Tensor, variances: Tensor, unbiased: float) -> None:
        """Statistics (G, C) that count for the running ones; variances times `unbiased` are unbiased."""
        self._collected.append((layer, means, variances, unbiased))

    def _collect(self) -> None:
        """What a forward has collected joins the scratch buffers, which hold the mean over all groups so far."""
        joins: dict[
            float, tuple[list[Tensor], list[Tensor]]
        ] = {}  # all layers at once: on a GPU one operation
        for layer, means, variances, unbiased in self._collected:
            layer.count += len(means)
            scratches, values = joins.setdefault(len(means) / layer.count, ([], []))
            scratches += layer.scratch
            values += [
                _mean(means).to(layer.scratch[0].dtype),
                _mean(variances).to(layer.scratch[1].dtype) * unbiased,
            ]
        self._collected = []
        for weight in sorted(joins, reverse=True):  # a layer that ran twice joins first by the larger
            torch._foreach_lerp_(*joins[weight], weight)

    def _allocate(self) -> None:
        tracked = [layer for layer in self.layers if layer.running_mean is not None]
        if not tracked:
            return
        widths = [layer.num_features for layer in tracked for _ in range(2)]
        self._flat = tracked[0].running_mean.new_zeros(sum(widths))
        views = iter(self._flat.split(widths))
        for layer in tracked:
            layer.scratch = (next(views), next(views))

    def update(self) -> None:
        """Running statistics move once, by the mean over groups, views, calls and ranks. Collective."""
        if self._flat is None:
            return
        if collectives.is_distributed():
            dist.all_reduce(self._flat)
            self._flat /= collectives.world_size()
        moved = [layer for layer in self.layers if layer.count]
        for momentum in {layer.momentum for layer in moved}:
            layers = [layer for layer in moved if layer.momentum == momentum]
            running = [buffer for layer in layers for buffer in (layer.running_mean, layer.running_var)]
            found = [scratch for layer in layers for scratch in layer.scratch]
            torch._foreach_lerp_(running, found, momentum)
        if moved:
            torch._foreach_add_([layer.num_batches_tracked for layer in moved], 1)
        self.discard()

    def discard(self) -> None:
        """Forgets what was collected: the step is not taken."""
        if self._flat is not None:
            self._flat.zero_()  # a NaN in it would survive a momentum of 1
        self._seen = []
        for layer in self.layers:
            layer.count = 0


def install(method: nn.Module, group: Group, *, share: int) -> Norms:
    """Replaces every nn.BatchNorm1d/2d of `method` in place (frozen teachers too) and returns their Norms.

    group: samples that share statistics, as `validate` accepts it; share: samples per rank and step.
    State dict keys do not change. Collective if the group is larger than the share. Raises UserError: there is
    a norm layer that would go on keeping statistics of its own.
    """
    found = unknown(method)
    if found:
        raise UserError(
            f"norm: {found}, whose statistics would depend on micro-batch and number of workers; use {KNOWN}"
        )
    size = share * collectives.world_size() if group == "global" else group
    norms = Norms(min(size, share), _peers(size // share) if size > share else None)
    replaced: dict[_BatchNorm, GroupedBatchNorm] = {}  # a module used in two places stays one module
    for parent in list(method.modules()):
        for name, child in list(parent._modules.items()):
            if is_groupable(child):
                if child not in replaced:
                    replaced[child] = GroupedBatchNorm(child, norms)
                setattr(parent, name, replaced[child])
    norms.layers += replaced.values()
    for number, layer in enumerate(norms.layers):
        layer.number = number
    return norms


def _mean(values: Tensor) -> Tensor:
    return values[0] if len(values) == 1 else values.mean(0)


def _peers(size: int) -> dist.ProcessGroup | None:
    """The process group of this rank among consecutive runs of `size` ranks."""
    if size == collectives.world_size():
        return dist.group.WORLD
    mine = None
    for first in range(0, collectives.world_size(), size):  # every rank takes part in making every group
        peers = dist.new_group(list(range(first, first + size)))
        if first <= collectives.rank() < first + size:
            mine = peers
    return mine
