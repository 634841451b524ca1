"""The search: one YAML file that says what is tried, by which algorithm, for how long and what counts as better."""

import copy
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, Field, NonNegativeInt, PositiveInt, ValidationError, field_validator

from vergence.platform.errors import UserError, nearest
from vergence.platform.search.objective import OBJECTIVES, REFUSED
from vergence.platform.search.space import Parameters, Space, drawn, grid, parse_space


class BudgetConfig(BaseModel, frozen=True, extra="forbid", strict=True):
    trials: PositiveInt | None = Field(
        None, description="how many are tried; null = all combinations of a grid"
    )
    epochs: PositiveInt = Field(description="of a trial that is not stopped early")
    concurrent: PositiveInt | None = Field(
        None, description="trials that train at the same time; null = what has room"
    )


class SchedulerConfig(BaseModel, frozen=True, extra="forbid", strict=True):
    """Which trials go on; Jamieson and Talwalkar 2016, arXiv:1502.07943; Li et al. 2018, arXiv:1810.05934."""

    name: Literal["none", "halving", "asha"] = Field(
        "none", description="none, successive halving, or its asynchronous form"
    )
    first: PositiveInt = Field(1, description="epochs of the first rung")
    factor: int = Field(3, ge=2, description="one trial in so many goes on, to so many times the epochs")


class SearchConfig(BaseModel, frozen=True, extra="forbid", strict=True):
    space: dict[str, Any] = Field(description="setting of the recipe -> domain")
    algorithm: Literal["grid", "random", "tpe"] = Field(
        "grid", description="all combinations, drawn ones, or Optuna's TPE"
    )
    scheduler: SchedulerConfig = SchedulerConfig()
    budget: BudgetConfig
    objective: str = Field("knn", description=f"what is compared: {', '.join(OBJECTIVES)}")
    direction: Literal["max", "min"] = Field("max", description="whether more of it is better")
    seed: NonNegativeInt = Field(0, description="of random and tpe")

    @field_validator("objective")
    @classmethod
    def _comparable(cls, objective: str) -> str:
        if objective in REFUSED:
            raise ValueError(REFUSED[objective])
        if objective not in OBJECTIVES:
            raise ValueError(f"no such objective ({nearest(objective, OBJECTIVES)})")
        return objective

    @property
    def domains(self) -> Space:
        return parse_space(self.space, "search")

    @property
    def rungs(self) -> list[int]:
        """Epochs after which trials are compared, ascending; the last is the whole budget of a trial."""
        whole, rungs, epochs = self.budget.epochs, list[int](), self.scheduler.first
        if self.scheduler.name != "none":
            while epochs < whole:
                rungs.append(epochs)
                epochs *= self.scheduler.factor
        return [*rungs, whole]

    @property
    def num_trials(self) -> int:
        return len(grid(self.domains)) if self.budget.trials is None else self.budget.trials

    def planned(self) -> list[dict[str, Any]]:
        """The parameters of all trials, where they are known beforehand; of TPE none are."""
        if self.algorithm == "grid":
            return grid(self.domains)
        if self.algorithm == "random":
            return [drawn(self.domains, self.seed, number) for number in range(self.num_trials)]
        return []

    def survivors(self, rung: int) -> int:
        """Trials that successive halving trains to rung number `rung`."""
        return max(1, self.num_trials // self.scheduler.factor**rung)

    @property
    def epochs_at_most(self) -> int:
        """Over all trials; exact unless ASHA stops some."""
        if self.scheduler.name != "halving":
            return self.num_trials * self.budget.epochs
        steps = [after - before for before, after in zip([0, *self.rungs], self.rungs)]
        return sum(self.survivors(rung) * epochs for rung, epochs in enumerate(steps))

    @property
    def epochs_at_least(self) -> int:
        """As many as ASHA trains if it stops every trial but the first as soon as it may."""
        if self.scheduler.name != "asha":
            return self.epochs_at_most
        return self.budget.epochs + (self.num_trials - 1) * self.rungs[0]

    def dump(self) -> dict[str, Any]:
        return self.model_dump(mode="json")

    def identity(self) -> dict[str, Any]:
        """All that makes two searches different ones."""
        raw = self.dump()
        del raw["budget"]["concurrent"]
        return raw


def parse_search(raw: Any, where: str) -> SearchConfig:
    """The validated search. Raises UserError with each wrong setting by path and its nearest valid name."""
    if not isinstance(raw, Mapping):
        raise UserError(f"{where}: a search is a mapping of settings, got {type(raw).__name__}")
    try:
        config = SearchConfig.model_validate(raw)
    except ValidationError as error:
        raise UserError(f"{where}: {'; '.join(map(_explain, error.errors()))}") from None
    parse_space(config.space, where)
    if config.algorithm == "grid":
        combinations = len(grid(config.domains))
        if config.budget.trials not in (None, combinations):
            raise UserError(
                f"{where}: budget.trials={config.budget.trials}, but the grid has {combinations} combinations; "
                "leave it out, or use random"
            )
    elif config.budget.trials is None:
        raise UserError(f"{where}: budget.trials is missing; {config.algorithm} needs a number of trials")
    if config.algorithm == "tpe" and config.scheduler.name == "halving":
        raise UserError(
            f"{where}: tpe proposes a trial from the scores of earlier ones, and halving wants all from the start; use "
            "scheduler.name asha or none"
        )
    if config.scheduler.name != "none" and config.scheduler.first >= config.budget.epochs:
        raise UserError(
            f"{where}: scheduler.first={config.scheduler.first} is not below budget.epochs={config.budget.epochs}: "
            "nothing could be stopped early"
        )
    return config


SECTIONS: Mapping[str, type[BaseModel]] = {"budget": BudgetConfig, "scheduler": SchedulerConfig}


def _explain(error: Any) -> str:
    """One of pydantic's errors as a phrase."""
    *above, name = map(str, error["loc"])
    path = ".".join([*above, name])
    if error["type"] == "extra_forbidden":
        model = SECTIONS.get(above[0], SearchConfig) if above else SearchConfig
        return f"{path} is not a setting ({nearest(name, model.model_fields)})"
    if error["type"] == "missing":
        return f"{path} is missing"
    if error["type"] == "literal_error":
        valid = error["ctx"]["expected"].replace("'", "").replace(" or ", ", ").split(", ")
        return f"{path}: got {error['input']!r} ({nearest(str(error['input']), valid)})"
    message = error["msg"].removeprefix("Value error, ")
    return f"{path}: {message[0].lower()}{message[1:]}, got {error['input']!r}"


def assigned(raw: dict[str, Any], parameters: Parameters) -> dict[str, Any]:
    """A copy of a recipe's plain values with those at some dotted paths replaced or added.

    Raises UserError: a path does not lead to a setting.
    """
    found = copy.deepcopy(raw)
    for path, value in parameters.items():
        *above, last = [int(part) if part.isdigit() else part for part in path.split(".")]
        node: Any = found
        try:
            for part in above:
                node = node[part]
            if isinstance(node, list) and not isinstance(last, int):
                raise TypeError
            node[last] = copy.deepcopy(value)
        except (TypeError, IndexError, KeyError):
            raise UserError(f"{path} does not lead to a setting") from None
    return found
