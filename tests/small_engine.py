"""A small net under the engine, on any number of ranks, and the same training in plain torch in one process."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vergence.methods.schedule import Schedule
from vergence.platform.train.engine import Engine
from vergence.platform.train.optim.config import GroupConfig, OptimConfig
from vergence.platform.train.optim.lars import LARS
from vergence.platform.train.schedule import ScheduleConfig

N, STAGES = 12, (0, 1, 2)
OPTIMS = {
    "sgd": OptimConfig(name="sgd", lr=0.1, rule="none", weight_decay=0.01),
    "adamw": OptimConfig(name="adamw", lr=0.01, rule="none", weight_decay=0.1),
    "clipped": OptimConfig(name="sgd", lr=0.1, rule="none", clip=0.05),
    "lars": OptimConfig(name="lars", lr=1.0, rule="none", trust=0.1, weight_decay=0.01),
    "scheduled": OptimConfig(
        name="adamw",
        lr=0.01,
        rule="none",
        weight_decay=Schedule(peak=0.1, end=2.0, shape="linear"),
        groups=(GroupConfig(match="head.*", schedule=ScheduleConfig(shape="constant")),),
    ),
}
FALLING = ScheduleConfig(shape="linear")
EPOCHS = 10  # of one step each
Arrays = dict[str, np.ndarray]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Sequential(
            nn.Conv2d(3, 5, 3), nn.GroupNorm(1, 5), nn.ReLU(), nn.Conv2d(5, 4, 3), nn.Flatten()
        )
        self.head = nn.Linear(64, 3)
        self.teacher = nn.Linear(2, 2).requires_grad_(False)
        self.register_buffer("queue", torch.arange(4.0))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x)).square().mean()


def inputs(step: int) -> Tensor:
    generator = torch.Generator().manual_seed(step)
    scale = torch.linspace(0.5, 2, N).view(-1, 1, 1, 1)
    return torch.randn(N, 3, 8, 8, generator=generator) * scale


def engine_of(net: Any, config: OptimConfig, zero: int, **changes: Any) -> Engine:
    settings = {"schedule": FALLING, "epochs": EPOCHS, "precision": "fp32", **changes}
    return Engine(net, config, global_batch=N, zero=zero, device=torch.device("cpu"), **settings)


def make(optim: str, zero: int, **changes: Any) -> Engine:
    return engine_of(Net(), OptimConfig(**{**OPTIMS[optim].model_dump(), **changes}), zero)


def train(
    engine: Engine, steps: range, rank: int, world: int, num_micros: int = 2
) -> list[tuple[float, float]]:
    """Micro-batches of this rank's share, each scaled so that their sum is the share's mean."""
    norms = []
    for step in steps:
        share = inputs(step).chunk(world)[rank]
        for i, micro in enumerate(share.chunk(num_micros)):
            loss = engine.module(micro.contiguous(memory_format=torch.channels_last)) / num_micros
            engine.backward(loss, i == num_micros - 1)
        engine.set_progress(step / EPOCHS)
        all_norm, first_norm = engine.grad_norms()
        norms.append((all_norm.item(), first_norm.item()))
        assert engine.step()
    return norms


def arrays(state: dict[str, Tensor]) -> Arrays:
    return {name: value.numpy() for name, value in state.items()}


def assert_same(a: Arrays, b: Arrays, what: str) -> None:
    assert a.keys() == b.keys()
    differing = [name for name in a if not np.array_equal(a[name], b[name])]
    assert not differing, f"{what}: {differing}"


def reference(
    optim: str, steps: int, thaw: int = 0, start: Arrays | None = None
) -> tuple[Arrays, list[tuple[float, float]]]:
    """Plain torch: one process, the whole batch at once, unfused optimiser; its state, and gradient norms.

    The head's gradient is None before step `thaw`. start: state to begin with, instead of a fresh one.
    """
    net, norms = Net(), []
    config: Any = OPTIMS[optim]
    weights: list[Any] = [net.encoder[0].weight, net.encoder[3].weight, net.head.weight]
    others = [p for p in net.parameters() if p.requires_grad and all(p is not w for w in weights)]
    if optim == "adamw":
        groups = [{"params": weights, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
        optimizer: Any = torch.optim.AdamW(groups, lr=config.lr, fused=False, foreach=False)
    elif optim == "lars":
        groups = [{"params": weights, "weight_decay": 0.01}, {"params": others, "adapt": False}]
        optimizer = LARS(groups, lr=config.lr, trust=config.trust)
    elif optim == "scheduled":
        head = {"params": [net.head.weight], "decays": True, "constant": True}
        head_bias = {"params": [net.head.bias], "weight_decay": 0.0, "constant": True}
        rest = {"params": [p for p in others if p is not net.head.bias], "weight_decay": 0.0}
        groups = [{"params": weights[:2], "decays": True}, head, rest, head_bias]
        optimizer = torch.optim.AdamW(groups, lr=config.lr, fused=False, foreach=False)
    else:
        optimizer = torch.optim.SGD(
            weights + others, lr=config.lr, momentum=0.9, weight_decay=config.weight_decay, foreach=False
        )
    names = {parameter: name for name, parameter in net.named_parameters() if parameter.requires_grad}
    if start is not None:
        values = {name: torch.from_numpy(value.copy()) for name, value in start.items()}
        net.load_state_dict({name: values[f"model.{name}"] for name in net.state_dict()})
        for parameter, name in names.items():
            own = [key for key in values if key.startswith(f"optim.{name}.")]
            optimizer.state[parameter] = {key.rpartition(".")[2]: values[key] for key in own}
    for step in range(steps):
        optimizer.zero_grad()
        net(inputs(step)).backward()
        if step < thaw:
            net.head.zero_grad(set_to_none=True)
        gradients = [p.grad for p in weights + others if p.grad is not None]
        norms.append(
            (torch.cat([g.flatten() for g in gradients]).norm().item(), weights[0].grad.norm().item())
        )
        if config.clip:
            nn.utils.clip_grad_norm_(weights + others, config.clip)
        for group in optimizer.param_groups:
            group["lr"] = config.lr * (1 if group.get("constant") else 1 - step / 10)
            if group.get("decays"):
                group["weight_decay"] = 0.1 + 1.9 * step / 10
        optimizer.step()
    state = {f"model.{n}": v for n, v in net.state_dict().items()}
    for parameter, slots in optimizer.state.items():
        state |= {f"optim.{names[parameter]}.{slot}": v for slot, v in slots.items()}
    return arrays(state), norms
