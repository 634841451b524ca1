"""Parameter groups and the optimiser over them.

Whether a parameter decays (and LARS adapts it) is decided by what it is, not by its shape: ZeRO hands
optimisers flat slices, and a 2-D prototype matrix is no weight of a layer.
"""

from fnmatch import fnmatchcase
from typing import Any, Literal

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from vergence.platform.errors import UserError, nearest
from vergence.platform.train.optim.config import GroupConfig, OptimConfig
from vergence.platform.train.optim.lars import LARS

Kind = Literal["weight", "norm", "bias", "token", "prototype"]
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


def parameter_groups(method: nn.Module, config: OptimConfig, lr: float) -> list[dict[str, Any]]:
    """Optimiser groups of all trainable parameters, one for each distinct setting, in order of appearance.

    Besides torch's keys a group has base_lr (lr times the group's factor), frozen_until (epochs), frozen (at
    the current step) and adapt (LARS). Raises UserError if a glob matches no trainable parameter.
    """
    decay_all = config.decay_1d if config.decay_1d is not None else config.name == "sgd"
    plain, unmatched = GroupConfig(match="*"), {group.match for group in config.groups}
    groups: dict[tuple[Any, ...], dict[str, Any]] = {}
    trainable = [(name, p) for name, p in method.named_parameters() if p.requires_grad]
    for name, parameter in trainable:
        own = next((group for group in config.groups if fnmatchcase(name, group.match)), plain)
        unmatched.discard(own.match)
        adapt = decay_all or kind(method.get_submodule(name.rpartition(".")[0]), name) == "weight"
        decay = config.weight_decay if adapt else 0.0
        settings = {
            "base_lr": lr * own.lr,
            "weight_decay": decay if own.weight_decay is None else own.weight_decay,
            "frozen_until": own.frozen_until,
            "adapt": adapt,
        }
        empty = {"params": [], "lr": settings["base_lr"], "frozen": False, **settings}
        groups.setdefault(tuple(settings.values()), empty)["params"].append(parameter)
    if unmatched:
        glob = min(unmatched)
        hint = nearest(glob, {name.rpartition(".")[0] + ".*" for name, _ in trainable})
        raise UserError(f"optim.groups: match {glob!r} fits no trainable parameter ({hint})")
    return list(groups.values())


def build_optimizer(method: nn.Module, config: OptimConfig, lr: float) -> torch.optim.Optimizer:
    """The optimiser named in `config`; `method` is on its device already.

    Fused on GPUs only: the CPU kernels round the last few elements of a tensor otherwise than the rest, so
    that results would depend on how ZeRO cuts the parameters; the time they save is below 1 % of a step.
    """
    groups = parameter_groups(method, config, lr)
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
