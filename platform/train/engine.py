"""The one place that knows DeepSpeed: backward, reduction, the optimiser step, state by parameter name."""

import logging
import os
import sys
import warnings
from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from vergence.methods.method import Method
from vergence.platform.errors import UserError
from vergence.platform.train.optim.config import OptimConfig, effective_lr
from vergence.platform.train.optim.groups import build_optimizer, slots
from vergence.platform.train.schedule import ScheduleConfig

Precision = Literal["fp32", "bf16"]
CLIP_EPSILON = 1e-6  # added to a parameter's norm before dividing by it


def check_support(optim: OptimConfig, zero: int) -> None:
    """Raises UserError for what cannot be right: ZeRO stage 3, and LARS with a stage above 0."""
    if zero not in (0, 1, 2):
        raise UserError(
            f"scale.zero={zero}: stages 0, 1 and 2 are supported; stage 3 shards the weights themselves, and "
            "a teacher's moving average would silently follow the shards; use scale.zero=2"
        )
    if optim.name == "lars" and zero:
        raise UserError(
            f"optim.name=lars with scale.zero={zero}: LARS needs the norm of each layer, and ZeRO hands the "
            "optimiser flat slices across layers; use scale.zero=0, or optim.name=sgd or adamw"
        )


def first_weights(encoder: nn.Module) -> nn.Parameter:
    """Those of the first layer that trains: no tokens or positions, which a ViT lists before it, no gains or offsets."""
    return next(
        parameter
        for name, parameter in encoder.named_parameters()
        if parameter.requires_grad and parameter.dim() > 1 and "weight" in name.rpartition(".")[2]
    )


class Engine:
    """A method, its optimiser and DeepSpeed around both.

    A step is backward(..., last=True), grad_norms(), step(). Gradients are averaged over ranks, never scaled
    by the number of backward calls. DeepSpeed's own counters are never used.
    """

    def __init__(
        self,
        method: Method,
        optim: OptimConfig,
        schedule: ScheduleConfig,
        *,
        epochs: float,
        global_batch: int,
        zero: int,
        precision: Precision,
        device: torch.device,
    ) -> None:
        """schedule: of the learning rate; epochs: of the run; zero: ZeRO stage 0, 1 or 2.

        Moves `method` to `device`, at stage 0 channels_last. Collective.

        With precision fp32 this process computes products and convolutions in fp32, on GPUs too, whose cuDNN
        would round their factors to TF32.

        Raises UserError: see check_support; a parameter group that matches nothing.
        """
        check_support(optim, zero)
        if precision == "fp32":
            torch.backends.cudnn.allow_tf32 = False
            torch.set_float32_matmul_precision("highest")
        self.module = method.to(device)
        self._lr, self._device, self._precision = effective_lr(optim, global_batch), device, precision
        self._schedule, self._epochs = schedule, epochs
        self._slots, self._clip_each = slots(optim), optim.clip_each
        self._norms: tuple[Tensor, Tensor] | None = None
        names = {parameter: name for name, parameter in method.named_parameters() if parameter.requires_grad}
        optimizer = build_optimizer(method, optim, self._lr, schedule)
        optimizer.register_step_pre_hook(_drop_frozen)
        groups = [[names[parameter] for parameter in group["params"]] for group in optimizer.param_groups]
        self._first = first_weights(method.encoder)
        self._deepspeed = _initialize(method, optimizer, zero, optim.clip, device)
        for buffer in method.buffers():  # DeepSpeed broadcasts parameters only
            dist.broadcast(buffer, 0)
        if (
            not zero
        ):  # after DeepSpeed's start, whose broadcast refuses it; ZeRO's flat views stay as they are
            method.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._zero: Any = self._deepspeed.optimizer if zero else None
        self._partitions = [
            _Partition(self._zero, i, group, dict(method.named_parameters()))
            for i, group in enumerate(groups)
        ]
        self._create_optimizer_state()
        self.set_progress(0.0)

    def autocast(self) -> AbstractContextManager[Any]:
        """A fresh context around one forward; fp32 weights, bf16 arithmetic if that is the precision."""
        return torch.autocast(self._device.type, torch.bfloat16, enabled=self._precision == "bf16")

    def backward(self, scalar: Tensor, last: bool) -> None:
        """Adds the gradients of `scalar`; with `last` they are averaged over ranks. Collective."""
        self._norms = None
        self._deepspeed.set_gradient_accumulation_boundary(last)
        self._deepspeed.backward(scalar)

    def set_progress(self, progress: float) -> None:
        """Learning rates, decays and what is frozen, of the step at a progress in [0, 1).

        A frozen group counts neither in the norm nor for clipping, and to the optimiser it has no gradient:
        its state, Adam's step count too, begins with its first own step.
        """
        self.lr = self._lr * self._schedule.at(progress, self._epochs)
        for group in self._optimizer.param_groups:
            group["lr"] = group["base_lr"] * group["schedule"].at(progress, self._epochs)
            group["weight_decay"] = group["decay"].at(progress, self._epochs)
            group["frozen"] = progress * self._epochs < group["frozen_until"]

    def grad_norms(self) -> tuple[Tensor, Tensor]:
        """0-d fp32 norms of the averaged gradient before clipping: all parameters, and `first_weights`.

        Between the last backward and step; computed once. Collective.
        """
        if self._norms is None:
            for group, partition in zip(self._optimizer.param_groups, self._partitions):
                if group["frozen"]:
                    for _, gradient in partition.gradients():
                        gradient.zero_()
            pieces = [piece for partition in self._partitions for piece in partition.gradients()]
            squares = torch.zeros(2, device=self._device)
            if pieces:
                norms = torch.stack(torch._foreach_norm([grad.float() for _, grad in pieces])).square()
                first = [norms[i] for i, (parameter, _) in enumerate(pieces) if parameter is self._first]
                squares = torch.stack([norms.sum(), sum(first, torch.zeros_like(squares[0]))])
            if self._zero is not None:  # each rank holds a part of the gradient
                dist.all_reduce(squares)
            total, first_layer = squares.sqrt().unbind()
            self._norms = total, first_layer
        return self._norms

    def step(self) -> bool:
        """One optimiser step; False if the gradient is not finite: then it is dropped and nothing changed."""
        # The averaged gradient is the same on all ranks, so all of them come to the same verdict.
        finite = bool(self.grad_norms()[0].isfinite())
        if finite:
            if self._clip_each is not None:
                self._clip_parameters(self._clip_each)
            self._deepspeed.step()
        self.zero_grad()
        return finite

    def _clip_parameters(self, largest: float) -> None:
        """Each parameter's gradient to this norm at most (DINO's code, utils.clip_gradients). Collective."""
        numbers = {p: i for i, p in enumerate(p for part in self._partitions for p in part.parameters)}
        pieces = [(numbers[p], grad) for part in self._partitions for p, grad in part.gradients()]
        squares = torch.zeros(len(numbers), device=self._device)
        for number, gradient in pieces:
            squares[number] = gradient.float().square().sum()
        if self._zero is not None:  # a parameter may lie on several ranks
            dist.all_reduce(squares)
        factors = (largest / (squares.sqrt() + CLIP_EPSILON)).clamp(max=1.0)
        for number, gradient in pieces:
            gradient.mul_(factors[number])

    def renew(self, parameters: Collection[nn.Parameter]) -> None:
        """After somebody else has set these weights, the same on all ranks: training goes on from them.

        What the optimiser remembers of them is zero then, but for its count of steps, which parameters share.
        """
        if not parameters:
            return
        chosen = set(parameters)
        for partition in self._partitions:
            partition.write_master()
            for slot in self._slots:
                if slot != "step":
                    partition.forget(self._optimizer.state, slot, chosen)

    def zero_grad(self) -> None:
        self._norms = None
        self._deepspeed.zero_grad()
        if self._zero is not None:
            self._zero.zero_grad()
            for i in range(len(self._partitions)):  # stage 2 would add to what is left here
                self._zero.averaged_gradients[i] = None
                self._zero.all_grad_tensors[i] = None

    @property
    def _optimizer(self) -> Any:
        return self._zero.optimizer if self._zero is not None else self._deepspeed.optimizer

    def _create_optimizer_state(self) -> None:
        """Zeros for every slot: what torch's first step would make, and a state that always has all names."""
        for group in self._optimizer.param_groups:
            for parameter in group["params"]:
                self._optimizer.state[parameter] = {
                    slot: torch.zeros((), device=self._device)
                    if slot == "step"
                    else torch.zeros_like(parameter)
                    for slot in self._slots
                }

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """The whole state by name, one tensor after another on the device, each valid until the next is drawn.

        model.NAME: parameters and buffers; optim.NAME.SLOT: optimiser state of a trainable parameter. The same at
        every stage and world size. Collective at stage >= 1, tensor by tensor: every rank draws all of them.
        """
        for name, value in self.module.state_dict().items():
            yield f"model.{name}", value.detach()
        for partition in self._partitions:
            for slot in self._slots:
                for name, value in partition.read(self._optimizer.state, slot):
                    yield f"optim.{name}.{slot}", value

    def state(self) -> dict[str, Tensor]:
        """Full CPU copies of `tensors` on this rank. Collective at stage >= 1."""
        return {name: cpu_copy(value) for name, value in self.tensors()}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """The inverse of `state`, from any stage and world size; it has the names of `expected_state`."""
        own = self.module.state_dict()
        with torch.no_grad():
            for name, value in own.items():
                value.copy_(state[f"model.{name}"])
            for partition in self._partitions:
                partition.write_master()
                for slot in self._slots:
                    values = {name: state[f"optim.{name}.{slot}"] for name in partition.names}
                    partition.write(self._optimizer.state, slot, values)
        self.zero_grad()


class _Partition:
    """One parameter group: how its state and gradients lie in memory.

    Stage 0: one tensor a parameter. Stage >= 1: all parameters are views of one flat buffer, and this rank's
    optimiser holds one even slice of it, so offsets in the buffer locate every parameter.
    """

    def __init__(self, zero: Any, index: int, names: list[str], parameters: dict[str, nn.Parameter]) -> None:
        self.names, self._zero, self._index = names, zero, index
        self.parameters = [parameters[name] for name in names]

    def gradients(self) -> Iterator[tuple[nn.Parameter, Tensor]]:
        """The pieces of the averaged gradient that this rank holds."""
        for parameter in self.parameters:
            if self._zero is None:
                if parameter.grad is not None:
                    yield parameter, parameter.grad
            elif parameter._hp_mapping is not None:  # type: ignore[attr-defined]
                index = parameter._index_in_param_group  # type: ignore[attr-defined]
                yield parameter, parameter._hp_mapping.get_lp_grad_fragment(index)  # type: ignore[attr-defined]

    def read(self, state: Any, slot: str) -> Iterator[tuple[str, Tensor]]:
        if self._zero is None:
            yield from ((name, state[p][slot]) for name, p in zip(self.names, self.parameters))
        elif slot == "step":
            yield from ((name, state[self._slice][slot]) for name in self.names)
        else:
            own = state[self._slice][slot]
            yield from ((name, self._collect(own, p)) for name, p in zip(self.names, self.parameters))

    def _collect(self, own: Tensor, parameter: nn.Parameter) -> Tensor:
        """One parameter's part of a slot, from the ranks whose slices it lies in; no rank holds more than that."""
        whole = torch.empty(parameter.numel(), dtype=own.dtype, device=own.device)
        start = self._offset(parameter)
        for rank in range(start // len(own), (start + len(whole) - 1) // len(own) + 1):
            first, last = max(start, rank * len(own)), min(start + len(whole), (rank + 1) * len(own))
            piece = whole[first - start : last - start]
            if rank == dist.get_rank():
                piece.copy_(own[first - rank * len(own) : last - rank * len(own)])
            dist.broadcast(piece, rank)
        return whole.as_strided(parameter.size(), parameter.stride())

    def write(self, state: Any, slot: str, values: dict[str, Tensor]) -> None:
        if self._zero is None:
            for name, parameter in zip(self.names, self.parameters):
                state[parameter][slot].copy_(values[name])
        elif slot == "step":
            state[self._slice][slot].copy_(values[self.names[0]])
        else:
            full = torch.zeros_like(self._zero.bit16_groups_flat[self._index])
            for name, parameter in zip(self.names, self.parameters):
                self._view(full, parameter).copy_(values[name])
            state[self._slice][slot].copy_(full.chunk(dist.get_world_size())[dist.get_rank()])

    def forget(self, state: Any, slot: str, chosen: set[nn.Parameter]) -> None:
        """Zeros for the chosen parameters, where this rank holds them."""
        for parameter in chosen.intersection(self.parameters):
            if self._zero is None:
                state[parameter][slot].zero_()
            else:
                own = state[self._slice][slot]
                start = self._offset(parameter) - dist.get_rank() * len(own)
                own[max(0, start) : max(0, start + parameter.numel())].zero_()

    def write_master(self) -> None:
        """The weights that the optimiser steps are a copy of the module's."""
        if self._zero is not None:
            parts = self._zero.parallel_partitioned_bit16_groups[self._index]
            self._slice.data.copy_(parts[dist.get_rank()])

    @property
    def _slice(self) -> Any:
        return self._zero.single_partition_of_fp32_groups[self._index]

    def _offset(self, parameter: nn.Parameter) -> int:
        """Where a parameter begins in the flat buffer of its group."""
        return parameter.storage_offset() - self._zero.bit16_groups_flat[self._index].storage_offset()

    def _view(self, full: Tensor, parameter: nn.Parameter) -> Tensor:
        return full.as_strided(parameter.size(), parameter.stride(), self._offset(parameter))


def _drop_frozen(optimizer: Any, args: Any, kwargs: Any) -> None:
    """Before a step of the optimiser, which DeepSpeed calls once, or at stage >= 1 once for each group."""
    for group in optimizer.param_groups:
        if group["frozen"]:
            for parameter in group["params"]:
                parameter.grad = None


def expected_state(method: nn.Module, optim: OptimConfig) -> dict[str, tuple[int, ...]]:
    """Name -> shape of all that `Engine.state` of this method and optimiser holds."""
    shapes = {f"model.{name}": tuple(value.shape) for name, value in method.state_dict().items()}
    for name, parameter in method.named_parameters():
        if parameter.requires_grad:
            shapes |= {
                f"optim.{name}.{slot}": () if slot == "step" else tuple(parameter.shape)
                for slot in slots(optim)
            }
    return shapes


def _initialize(
    method: nn.Module, optimizer: torch.optim.Optimizer, zero: int, clip: float | None, device: torch.device
) -> Any:
    os.environ.setdefault("DS_ACCELERATOR", device.type)
    os.environ.setdefault("LOCAL_RANK", str(device.index or 0))
    deepspeed = _import_deepspeed()
    # No compiled ops. Asking which could be built runs the compiler; on CPU hosts its start would then build
    # one, and a compiler killed meanwhile leaves a lock that hangs every later run.
    deepspeed.ops.__compatible_ops__ = {}
    backend = "nccl" if device.type == "cuda" else "gloo"
    if not dist.is_initialized():
        store = dist.HashStore()  # type: ignore[attr-defined]
        dist.init_process_group(backend, store=store, rank=0, world_size=1)
    deepspeed.init_distributed(dist_backend=backend, dist_init_required=False, verbose=False)
    num_elements = sum(p.numel() for p in method.parameters() if p.requires_grad)
    config = {
        "train_micro_batch_size_per_gpu": 1,  # unused: the boundary of a step is set by hand
        "gradient_accumulation_steps": 1,
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {"stage": zero, "reduce_bucket_size": min(num_elements, 500_000_000)},
        "gradient_clipping": clip or 0.0,
        "steps_per_print": 2**62,
    }
    # torch 2.13 renamed it, DeepSpeed calls it every step
    warnings.filterwarnings("ignore", message=".*all_gather_into_tensor", category=FutureWarning)
    logger = logging.getLogger("DeepSpeed")
    logger.setLevel(logging.ERROR)  # it warns of every optimiser but its own
    engine, *_ = deepspeed.initialize(
        model=method, optimizer=optimizer, config=config, dist_init_required=False
    )
    logger.setLevel(logging.WARNING)
    return engine


def _import_deepspeed() -> Any:
    """DeepSpeed without MLflow, which its autotuner imports if it can: a second of every worker's start."""
    absent = "mlflow" not in sys.modules
    if absent:
        sys.modules["mlflow"] = None  # type: ignore[assignment]  # `import mlflow` raises
    try:
        import deepspeed
        import deepspeed.ops
    finally:
        if absent:
            del sys.modules["mlflow"]
    return deepspeed


def cpu_copy(value: Tensor) -> Tensor:
    """A contiguous copy that shares nothing with the original."""
    return value.detach().to("cpu", copy=True).contiguous()
