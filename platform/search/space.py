"""What a search tries: settings of the recipe by dotted path, each with its domain."""

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from vergence.platform.errors import UserError, nearest

DIGITS = 6  # significant ones of a drawn number, so that tables and recipes can be read

Parameters = Mapping[str, Any]  # path -> value
Kind = Literal["uniform", "loguniform", "integer"]


@dataclass(frozen=True)
class Choice:
    """One of some values: numbers, words, or whole sections."""

    values: tuple[Any, ...]

    @property
    def probes(self) -> tuple[Any, ...]:
        """Values that must all be valid for the domain to be."""
        return self.values

    @property
    def is_log(self) -> bool:
        """Whether a picture of the scores shows this axis by powers."""
        numbers = [value for value in self.values if is_number(value)]
        return len(numbers) == len(self.values) and min(numbers) > 0 and max(numbers) >= 10 * min(numbers)

    def draw(self, generator: np.random.Generator) -> Any:
        return self.values[int(generator.integers(len(self.values)))]

    def __str__(self) -> str:
        return f"one of {', '.join(map(str, self.values))}"


@dataclass(frozen=True)
class Range:
    """All numbers from low to high, both included."""

    kind: Kind
    low: float
    high: float

    @property
    def probes(self) -> tuple[Any, ...]:
        return (self.low, self.high)

    @property
    def is_log(self) -> bool:
        return self.kind == "loguniform"

    def draw(self, generator: np.random.Generator) -> Any:
        if self.kind == "integer":
            return int(generator.integers(int(self.low), int(self.high) + 1))
        if self.kind == "uniform":
            return self.rounded(generator.uniform(self.low, self.high))
        return self.rounded(math.exp(generator.uniform(math.log(self.low), math.log(self.high))))

    def rounded(self, value: float) -> float:
        """To six digits, within the range."""
        return min(self.high, max(self.low, float(f"{value:.{DIGITS}g}")))

    def __str__(self) -> str:
        return f"{self.kind} from {self.low:g} to {self.high:g}"


Domain = Choice | Range
Space = Mapping[str, Domain]


def parse_space(raw: Any, where: str) -> Space:
    """The domains by path. Raises UserError naming the path and what is valid; paths are not looked up here."""
    if not isinstance(raw, Mapping) or not raw:
        raise UserError(
            f"{where}: space: a mapping of settings to domains, as method.temperature: {{choice: [0.1, 0.2]}}"
        )
    return {str(path): _domain(domain, f"{where}: space: {path}") for path, domain in raw.items()}


def _domain(raw: Any, where: str) -> Domain:
    kinds = ("choice", "uniform", "loguniform", "integer")
    if not isinstance(raw, Mapping) or len(raw) != 1:
        raise UserError(f"{where}: a domain is one of {{{'|'.join(kinds)}: [...]}}, got {raw!r}")
    ((kind, values),) = raw.items()
    if kind not in kinds:
        raise UserError(f"{where}: {kind} is not a domain ({nearest(str(kind), kinds)})")
    if not isinstance(values, list) or not values:
        raise UserError(f"{where}: {kind} takes a list, got {values!r}")
    if kind == "choice":
        if any(value in values[:i] for i, value in enumerate(values)):
            raise UserError(f"{where}: a value stands twice in {values}")
        return Choice(tuple(values))
    if len(values) != 2 or not all(map(is_number, values)) or not values[0] < values[1]:
        raise UserError(f"{where}: {kind} takes [low, high] with low < high, got {values}")
    if kind == "loguniform" and values[0] <= 0:
        raise UserError(f"{where}: loguniform needs low > 0, got {values[0]:g}; use uniform, or a choice")
    if kind == "integer" and not all(isinstance(value, int) for value in values):
        raise UserError(f"{where}: integer takes whole numbers, got {values}")
    return Range(kind, *values)


def grid(space: Space) -> list[dict[str, Any]]:
    """Every combination of the choices, the last path fastest. UserError: a domain is no choice."""
    return list(_combinations(space))


def _combinations(space: Space) -> Iterator[dict[str, Any]]:
    for path, domain in space.items():
        if not isinstance(domain, Choice):
            raise UserError(
                f"algorithm: grid tries every value, and {path} is {domain}; give it a choice, or use random or tpe"
            )
    values = [domain.probes for domain in space.values()]
    for combination in itertools.product(*values):
        yield dict(zip(space, combination))


def drawn(space: Space, seed: int, number: int) -> dict[str, Any]:
    """The parameters of trial `number` of a random search: a function of seed and number alone."""
    generator = np.random.default_rng((seed, number))
    return {path: domain.draw(generator) for path, domain in space.items()}


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
