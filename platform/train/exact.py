"""Large batches, exactly: the gradient of the criterion on a whole share, computed by micro-batches.

Two-pass form (GradCache, Gao et al. 2021, arXiv:2101.06983): embeddings of all micro-batches without graph,
gradient of the criterion with respect to the embeddings, then the chain rule one micro-batch at a time.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal, NamedTuple, Protocol, cast

import torch
from pydantic import BaseModel, Field, PositiveInt
from torch import Tensor

from vergence.methods.method import Batch, Losses, Method, Tensors
from vergence.platform.train.norms import Norms

Regime = Literal["one", "kept", "two-pass"]


class BatchConfig(BaseModel, frozen=True, extra="forbid", strict=True, populate_by_name=True):
    global_batch: PositiveInt = Field(
        alias="global", description="samples per optimiser step, over all workers"
    )
    micro: PositiveInt | None = Field(
        default=None,
        description="samples per forward on a worker; default: the share, or what fits in memory",
    )
    regime: Literal["auto", "one", "kept", "two-pass"] = Field(
        default="auto",
        description="one forward of the share; micro-batches with the graph kept; or two passes, which need "
        "the memory of one micro-batch. All give the same gradients; auto chooses by memory",
    )


class Result(NamedTuple):
    """A step's outcome, everything detached; `out`, `targets` and `batch` hold the rank's whole share."""

    losses: Losses
    out: Tensors
    targets: Tensors
    batch: Batch


class MicroBatches(Protocol):
    """The micro-batches of a share by number, from 0; a list will do. One that is asked for twice is the same."""

    def __len__(self) -> int: ...
    def __getitem__(self, number: int, /) -> Batch: ...


def accumulate(
    method: Method,
    micros: MicroBatches,
    *,
    seeds: Sequence[int],
    regime: Regime,
    norms: Norms,
    autocast: Callable[[], AbstractContextManager[Any]],
    backward: Callable[[Tensor, bool], None],
    proceed: Callable[[Tensor], bool],
) -> Result | None:
    """Forward, criterion and backward of a share that comes as micro-batches of equal size.

    micros: each is asked for just before its forward, in two passes twice; of its views nothing is kept here.
    seeds: one a micro-batch; what its forward draws (dropout, stochastic depth) follows from it in both passes.
    autocast: a fresh context per call (weights cached in a pass without graph must not serve one with graph).
    backward(scalar, last): adds a scalar's gradients; `last` marks the final call of the step.
    proceed(loss): called before the first backward with graph; on False nothing is accumulated and None is
    returned. Collective: every rank must call it, with the same number of micro-batches.
    """
    assert regime != "one" or len(micros) == 1, f"regime one takes a single micro-batch, got {len(micros)}"
    two_pass = regime == "two-pass"

    def forward(micro: Batch, seed: int, graph: bool) -> Tensors:
        torch.manual_seed(seed)
        with torch.set_grad_enabled(graph), norms.samples(len(micro.ids), collect=graph), autocast():
            return cast(Tensors, method(micro))

    def targets_of(micro: Batch) -> Tensors:
        with torch.no_grad(), norms.samples(len(micro.ids), collect=True), autocast():
            return method.targets(micro)

    assert len(micros) == len(seeds), f"{len(micros)} micro-batches and {len(seeds)} seeds"
    outs, teachers, parts = [], [], []
    for i, seed in enumerate(seeds):
        micro = micros[i]
        outs.append(forward(micro, seed, graph=not two_pass))
        teachers.append(targets_of(micro))
        parts.append(micro._replace(views=()))
        del micro
    out, targets, batch = _cat(outs), _cat(teachers), share_batch(parts)
    if two_pass:
        out = _make(out, [_leaf(x) for x in out])
    losses = method.criterion(out, targets, batch)
    if not proceed(losses.loss.detach()):
        norms.discard()
        return None
    if two_pass:
        chunks = _chunked_gradients(losses.loss, out, parts)
        for i, (seed, gradients) in enumerate(zip(seeds, chunks)):
            backward(_inner_product(forward(micros[i], seed, graph=True), gradients), i == len(seeds) - 1)
    else:
        backward(losses.loss, True)
    return Result(_detached(losses), _detached(out), _detached(targets), batch)


def share_batch(micros: Sequence[Batch]) -> Batch:
    """What the criterion sees of a share: ids, fields and geometry of all micro-batches, no views."""
    first = micros[0]
    return first._replace(
        views=(),
        ids=torch.cat([micro.ids for micro in micros]),
        fields={name: torch.cat([micro.fields[name] for micro in micros]) for name in first.fields},
        geometry=[torch.cat(of_view) for of_view in zip(*(micro.geometry for micro in micros))],
        shuffle=None,  # of a micro-batch
    )


def _chunked_gradients(loss: Tensor, out: Any, micros: Sequence[Batch]) -> list[list[Tensor | None]]:
    """The loss's gradient with respect to each field of `out`, cut into micro-batches."""
    leaves = [x for x in out if x.requires_grad]
    grads = iter(torch.autograd.grad(loss, leaves, allow_unused=True))
    sizes = [len(micro.ids) for micro in micros]
    chunks: list[Sequence[Tensor | None]] = []
    for x in out:
        grad = next(grads) if x.requires_grad else None
        chunks.append([None] * len(micros) if grad is None else grad.split(sizes))
    return [list(micro_chunks) for micro_chunks in zip(*chunks)]


def _inner_product(out: Any, gradients: Sequence[Tensor | None]) -> Tensor:
    """Σ <embedding, gradient>: its gradient with respect to the parameters is that of the loss."""
    wide = [(x, g) for x, g in zip(out, gradients) if g is not None and x.requires_grad]
    terms = [(x.float() * g.float() if x.dtype == torch.bfloat16 else x * g).sum() for x, g in wide]
    return torch.stack(terms).sum()


def _leaf(x: Tensor) -> Tensor:
    return x.detach().requires_grad_(x.is_floating_point())


def _make(like: Any, values: Sequence[Any]) -> Any:
    """A NamedTuple of like's type; () stays ()."""
    return like._make(values) if hasattr(like, "_make") else tuple(values)


def _cat(parts: Sequence[Any]) -> Any:
    if len(parts) == 1:
        return parts[0]
    return _make(parts[0], [torch.cat(field) for field in zip(*parts)])


def _detached(values: Any) -> Any:
    return _make(values, [x.detach() for x in values])
