"""Batch normalisation over groups of samples: statistics depend on neither micro-batch nor rank count.

Methods write plain `nn.BatchNorm1d/2d`; `install` replaces them. Statistics are taken over runs of `group`
consecutive samples, by position in the global batch: groups within a micro-batch need no communication,
larger ones are synchronised over the ranks that share them. Running statistics never change inside a
forward: they are collected in scratch buffers and applied once per optimiser step.
Shape suffixes: V views, n samples, R = V * n rows (view-major), C channels.
"""

from collections.abc import Iterator
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


class _SynchronisedBatchNorm(torch.autograd.Function):
    """y = (x - mean) / sqrt(var + eps) * weight + bias, statistics over the rows of all ranks of `peers`.

    Ioffe & Szegedy 2015, arXiv:1502.03167, section 3 (forward and gradient). Every rank has as many rows.
    Also returns mean and unbiased variance (C,). The gradients of weight and bias are this rank's part,
    like those of any parameter; the gradient of x is that of the sum over ranks of the objective.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, peers: Any
    ) -> Any:
        dims, ranks = _all_but_channels(x), dist.get_world_size(peers)
        rows = ranks * x.numel() // x.shape[1]
        # Per-rank moments, combined about the common mean: E[x^2] - mean^2 would cancel.
        var_r, mean_r = torch.var_mean(_wide(x), dims, correction=0)
        mean = _sum(mean_r, peers) / ranks
        var = _sum(var_r + (mean_r - mean).square(), peers) / ranks
        ctx.save_for_backward(x, weight, mean, torch.rsqrt(var + eps))
        ctx.peers, ctx.rows, ctx.has_bias = peers, rows, bias is not None
        unbiased = var * (rows / max(rows - 1, 1))
        ctx.mark_non_differentiable(mean, unbiased)
        return F.batch_norm(x, mean, var, weight, bias, training=False, eps=eps), mean, unbiased

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        x, weight, mean, inverse_std = ctx.saved_tensors
        dims, shape = _all_but_channels(x), (1, -1) + (1,) * (x.dim() - 2)
        dy = _wide(grads[0])
        normed = (_wide(x) - mean.view(shape)) * inverse_std.view(shape)
        sums = torch.stack([dy.sum(dims), (dy * normed).sum(dims)])  # (2, C), this rank
        mean_dy, mean_dy_normed = (_sum(sums, ctx.peers) / ctx.rows).unbind()
        scale = inverse_std if weight is None else inverse_std * weight
        dx = (dy - mean_dy.view(shape) - normed * mean_dy_normed.view(shape)) * scale.view(shape)
        dweight = None if weight is None else sums[1].to(weight.dtype)
        return dx.to(x.dtype), dweight, sums[0] if ctx.has_bias else None, None, None


def _all_but_channels(x: Tensor) -> list[int]:
    return [dim for dim in range(x.dim()) if dim != 1]


def _wide(x: Tensor) -> Tensor:
    """At least fp32: sums over many bf16 values lose digits."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def _sum(x: Tensor, peers: Any) -> Tensor:
    total = x.clone()
    dist.all_reduce(total, group=peers)
    return total


class GroupedBatchNorm(_BatchNorm):
    """Batch norm over groups of samples; parameter, buffer and child names are those of what it replaces.

    In training mode it works only inside `Norms.samples`; in eval mode it uses the running statistics.
    """

    def __init__(self, source: _BatchNorm, norms: "Norms") -> None:
        if source.momentum is None:
            raise ValueError("batch norm with momentum=None (a cumulative average) is not supported")
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
        if norms.peers is not None:
            return self._synchronised(x)
        group = norms.group
        assert n % group == 0, f"a forward of {n} samples is not a multiple of norm.group {group}"
        if n == group:
            return self._normalise(x)
        if len(x) == n:
            return torch.cat([self._normalise(x_j) for x_j in x.split(group)])
        # cat and split keep channels_last; a gather by index or a reshape would not
        views = [x_v.split(group) for x_v in x.split(n)]  # V lists of n / group chunks
        chunks = [self._normalise(torch.cat(x_j)).split(group) for x_j in zip(*views)]
        return torch.cat([y_v for y_view in zip(*chunks) for y_v in y_view])

    def _normalise(self, x: Tensor) -> Tensor:
        """One group; its statistics join the scratch buffers at no extra pass over x.

        F.batch_norm moves its running statistics by (1 - m) * old + m * new: with m = 1/k for the k-th group
        they become the mean over the groups.
        """
        if not self.norms.collect or self.scratch is None:
            return F.batch_norm(x, None, None, self.weight, self.bias, True, 0.0, self.eps)
        self.count += 1
        return F.batch_norm(x, *self.scratch, self.weight, self.bias, True, 1 / self.count, self.eps)

    def _synchronised(self, x: Tensor) -> Tensor:
        y, mean, var = _SynchronisedBatchNorm.apply(x, self.weight, self.bias, self.eps, self.norms.peers)
        if self.norms.collect and self.scratch is not None:
            self.count += 1
            for scratch, value in zip(self.scratch, (mean, var)):
                scratch.lerp_(value.to(scratch.dtype), 1 / self.count)
        return y


class Norms:
    """All batch norms of a method: the samples of the current forward, and the running statistics."""

    def __init__(self, group: int, peers: Any) -> None:
        """group: samples, within a share; peers: the process group that shares one larger group, or None."""
        self.group, self.peers = group, peers
        self.layers: list[Any] = []  # GroupedBatchNorm, whose buffers torch types as optional
        self.n, self.collect = 0, False
        self._flat: Tensor | None = None  # scratch of all layers, one storage

    @contextmanager
    def samples(self, n: int, collect: bool) -> Iterator[None]:
        """Around one forward of n samples; `collect`: its statistics count for the running ones."""
        if collect and self._flat is None:
            self._allocate()
        self.n, self.collect = n, collect
        try:
            yield
        finally:
            self.n, self.collect = 0, False

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
        for layer in self.layers:
            if layer.count and layer.scratch is not None:
                layer.running_mean.lerp_(layer.scratch[0], layer.momentum)
                layer.running_var.lerp_(layer.scratch[1], layer.momentum)
                layer.num_batches_tracked += 1
        self.discard()

    def discard(self) -> None:
        """Forgets what was collected: the step is not taken."""
        if self._flat is not None:
            self._flat.zero_()  # a NaN in it would survive a momentum of 1
        for layer in self.layers:
            layer.count = 0


def install(method: nn.Module, group: Group, *, share: int) -> Norms:
    """Replaces every nn.BatchNorm1d/2d of `method` in place (frozen teachers too) and returns their Norms.

    group: samples that share statistics, as `validate` accepts it; share: samples per rank and step.
    State dict keys do not change. Collective if the group is larger than the share.
    """
    size = share * collectives.world_size() if group == "global" else group
    norms = Norms(min(size, share), _peers(size // share) if size > share else None)
    replaced: dict[_BatchNorm, GroupedBatchNorm] = {}  # a module used in two places stays one module
    for parent in list(method.modules()):
        for name, child in list(parent._modules.items()):
            if isinstance(child, nn.BatchNorm1d | nn.BatchNorm2d):
                if child not in replaced:
                    replaced[child] = GroupedBatchNorm(child, norms)
                setattr(parent, name, replaced[child])
    norms.layers = list(replaced.values())
    return norms


def _peers(size: int) -> Any:
    """The process group of this rank among consecutive runs of `size` ranks."""
    if size == collectives.world_size():
        return dist.group.WORLD
    mine = None
    for first in range(0, collectives.world_size(), size):  # every rank takes part in making every group
        peers = dist.new_group(list(range(first, first + size)))
        if first <= collectives.rank() < first + size:
            mine = peers
    return mine
