"""The teacher: an exponential moving average of the student's parameters (key, target, momentum encoder).

Parameters only, as in the official code of MoCo and BYOL: each network keeps the running statistics of its
own forwards. In fp32: a bf16 teacher hardly moves, since (1 - m) * (student - teacher) rounds away.
"""

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn

from ..torchvision_shim import timm

Network = TypeVar("Network", bound=nn.Module)

MOMENTUM = "m of teacher = m * teacher + (1 - m) * student; a number, which rises to 1 by a half-cosine, or a schedule."


def teacher_of(student: Network) -> Network:
    """A frozen fp32 copy that drops no paths, to be called without gradient and in train mode."""
    teacher = copy.deepcopy(student).float().requires_grad_(False)
    for module in teacher.modules():
        if isinstance(module, timm.layers.drop.DropPath):
            module.drop_prob = 0.0
    return teacher


@torch.no_grad()
def update(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """teacher <- momentum * teacher + (1 - momentum) * student, in the teacher's precision."""
    pairs = list(zip(teacher.parameters(), student.parameters(), strict=True))
    old: list[Tensor] = [t for t, _ in pairs]
    new: list[Tensor] = [s.to(t.dtype) for t, s in pairs]
    torch._foreach_lerp_(old, new, 1 - momentum)
