"""The optimiser section of a recipe."""

import math
from typing import Literal, Self

from pydantic import BaseModel, Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from vergence.methods.schedule import NonNegative
from vergence.platform.train.schedule import ScheduleConfig

Kind = Literal["weight", "norm", "bias", "token", "prototype"]


class GroupConfig(BaseModel, frozen=True, extra="forbid", strict=True):
    match: str | None = Field(
        default=None,
        description="glob on parameter names, e.g. `predictor.*`; a parameter joins the first group that fits",
    )
    kinds: tuple[Kind, ...] = Field(
        default=(), description="what the parameters are: weight, norm, bias, token, prototype; default: any"
    )
    lr: NonNegativeFloat = Field(default=1.0, description="factor on the learning rate")
    schedule: ScheduleConfig | None = Field(
        default=None,
        description="of the learning rate, instead of the recipe's; {shape: constant} is constant",
    )
    weight_decay: NonNegative | None = Field(default=None, description="instead of optim.weight_decay")
    frozen_until: NonNegativeFloat = Field(default=0.0, description="epochs during which nothing moves")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.match is None and not self.kinds:
            raise ValueError("a group needs match, kinds or both")
        return self

    def __str__(self) -> str:
        kinds = f"kinds [{', '.join(self.kinds)}]" if self.kinds else ""
        return " and ".join(filter(None, [f"match {self.match!r}" if self.match else "", kinds]))


class OptimConfig(BaseModel, frozen=True, extra="forbid", strict=True):
    name: Literal["sgd", "adamw", "lars"] = Field(
        default="sgd", description="optimiser; lars needs scale.zero=0"
    )
    lr: PositiveFloat = Field(default=0.05, description="learning rate for a batch of `per` samples")
    per: PositiveInt = Field(default=256, description="batch that lr is meant for")
    rule: Literal["linear", "sqrt", "none"] = Field(
        default="linear", description="how lr grows with batch.global / per"
    )
    momentum: float = Field(default=0.9, ge=0, lt=1, description="of sgd and lars")
    betas: tuple[float, float] = Field(default=(0.9, 0.999), description="of adamw")
    eps: PositiveFloat = Field(default=1e-8, description="of adamw")
    weight_decay: NonNegative = Field(
        default=1e-4, description="adamw: decoupled; sgd, lars: L2; a number or a schedule"
    )
    trust: PositiveFloat = Field(
        default=1e-3, description="eta of lars: step length relative to the weight norm"
    )
    clip: PositiveFloat | None = Field(default=None, description="largest norm of the whole gradient")
    clip_each: PositiveFloat | None = Field(
        default=None, description="largest norm of each parameter's gradient by itself, as DINO's code clips"
    )
    decay_1d: bool | None = Field(
        default=None,
        description="decay (and, under lars, adapt) norm gains, biases, tokens and prototypes too; "
        "default: true for sgd, false for adamw and lars",
    )
    groups: tuple[GroupConfig, ...] = Field(default=(), description="settings for parameters by name")


def effective_lr(config: OptimConfig, global_batch: int) -> float:
    """lr scaled to the global batch: N / per (Goyal et al. 2017, arXiv:1706.02677), its root, or 1."""
    ratio = global_batch / config.per
    return config.lr * {"linear": ratio, "sqrt": math.sqrt(ratio), "none": 1.0}[config.rule]
