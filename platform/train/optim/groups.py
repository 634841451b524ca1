"""Parameter groups and the optimiser over them.

Whether a parameter decays (and LARS adapts it) is decided by what it is, not by its shape: ZeRO hands
optimisers flat slices, and a 2-D prototype matrix is no weight of a layer.
"""

from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from vergence.methods.schedule import scheduled
from vergence.platform.errors import UserError, nearest
from vergence.platform.train.optim.config import GroupConfig, Kind, OptimConfig
from vergence.platform.train.optim.lars import LARS
from vergence.platform.train.schedule import ScheduleConfig

_NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.modules.instancenorm._InstanceNorm)
_GAINS = ("gamma", "logit_scale", "scale", "temperature")  # LayerScale and friends
_TOKENS = ("token", "pos_embed", "position_embedding")


def kind(module: nn.Module, name: str) -> Kind:
    """What the parameter with this dotted name of its owner `module` is."""
    leaf = name.rpartition(".")[2]
    if "prototype" in name:
        return "prototype"
    if leaf == "bias" or leaf.endswith("_bias"):
        return "bias"
    if isinstance(module, _NORMS) or leaf in _GAINS or leaf == "weight_g":
        return "norm"
    if any(leaf.endswith(token) for token in _TOKENS):
        return "token"
    return "weight"


def parameter_groups(
    method: nn.Module, config: OptimConfig, lr: float, schedule: ScheduleConfig
) -> list[dict[str, Any]]:
    """Optimiser groups of all trainable parameters, one for each distinct setting, in order of appearance.

    Besides torch's keys a group has base_lr (lr times the group's factor), schedule (of the learning rate, in
    fractions of base_lr), decay (a Schedule), frozen_until (epochs), frozen (at the current step) and adapt
    (LARS). Raises UserError if a group of the config fits no trainable parameter.
    """
    decay_all = config.decay_1d if config.decay_1d is not None else config.name == "sgd"
    plain, unmatched = GroupConfig(match="*"), set(config.groups)
    groups: dict[tuple[Any, ...], dict[str, Any]] = {}
    trainable = [(name, p) for name, p in method.named_parameters() if p.requires_grad]
    for name, parameter in trainable:
        what = kind(method.get_submodule(name.rpartition(".")[0]), name)
        own = next((group for group in config.groups if _fits(group, name, what)), plain)
        unmatched.discard(own)
        adapt = decay_all or what == "weight"
        decay = config.weight_decay if adapt else 0.0
        settings = {
            "base_lr": lr * own.lr,
            "schedule": own.schedule or schedule,
            "decay": scheduled(decay if own.weight_decay is None else own.weight_decay),
            "frozen_until": own.frozen_until,
            "adapt": adapt,
        }
        # lr and weight_decay are set anew before each step
        empty = {"params": [], "lr": settings["base_lr"], "weight_decay": 0.0, "frozen": False, **settings}
        groups.setdefault(tuple(settings.values()), empty)["params"].append(parameter)
    for group in config.groups:
        if group in unmatched:
            names = {name.rpartition(".")[0] + ".*" for name, _ in trainable}
            hint = f" ({nearest(group.match, names)})" if group.match else ""
            raise UserError(f"optim.groups: {group} fits no trainable parameter{hint}")
    return list(groups.values())


def _fits(group: GroupConfig, name: str, kind: Kind) -> bool:
    by_name = group.match is None or fnmatchcase(name, group.match)
    return by_name and (not group.kinds or kind in group.kinds)


def build_optimizer(
    method: nn.Module, config: OptimConfig, lr: float, schedule: ScheduleConfig
) -> torch.optim.Optimizer:
    """The optimiser named in `config`; `method` is on its device already.

    Fused on GPUs only: the CPU kernels round the last few elements of a tensor otherwise than the rest, so
    that results would depend on how ZeRO cuts the parameters; the time they save is below 1 % of a step.
    """
    groups = parameter_groups(method, config, lr, schedule)
    fused = next(method.parameters()).is_cuda
    if config.name == "sgd":
        return torch.optim.SGD(groups, lr=lr, momentum=config.momentum, fused=fused)
    if config.name == "adamw":
        return torch.optim.AdamW(groups, lr=lr, betas=config.betas, eps=config.eps, fused=fused)
    return LARS(groups, lr=lr, momentum=config.momentum, trust=config.trust)


def slots(config: OptimConfig) -> tuple[str, ...]:
    """Names of the optimiser's state per parameter; tensors of its shape, but for the scalar `step`."""
    if config.name == "adamw":
        return ("step", "exp_avg", "exp_avg_sq")
    return ("momentum_buffer",) if config.momentum else ()
