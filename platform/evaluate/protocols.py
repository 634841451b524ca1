"""How embeddings are measured against labels: protocols of one shape, by the version that freezes each."""

from collections.abc import Mapping
from typing import NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from vergence.platform.augment import rng
from vergence.platform.encoders.encoder import CPU
from vergence.platform.evaluate.definitions import KNN, LINEAR, Definition
from vergence.platform.evaluate.knn import knn_predict
from vergence.platform.evaluate.linear import Regression, predict

DRAW = 0x11  # stream of random words: the tenth of the bank that chooses C
Z = 1.959964  # quantile 0.975 of the normal distribution


class Examples(NamedTuple):
    """Embeddings with their classes.

    rows: (n, d) float32.  labels: (n,) int64 >= 0; a number means the same class in bank and queries.
    """

    rows: NDArray[np.float32]
    labels: NDArray[np.int64]


class Scores(NamedTuple):
    """What a protocol says of an encoder.

    correct: (m,) bool, whether each query got its class.  settings: what was chosen or cut on the way.  chance: top-1 of
    a guess, where no labelled image says what is more likely.
    """

    correct: NDArray[np.bool_]
    settings: Mapping[str, float]
    chance: float | None = None

    @property
    def top1(self) -> float:
        """Share of the queries that got their class."""
        return float(self.correct.mean())

    @property
    def interval(self) -> tuple[float, float]:
        """Of the top-1 over the images that might have been asked, 95 %: Wilson's score interval (1927, JASA 22)."""
        n, p = len(self.correct), self.top1
        middle, half = p + Z * Z / (2 * n), Z * (p * (1 - p) / n + Z * Z / (4 * n * n)) ** 0.5
        return (middle - half) / (1 + Z * Z / n), (middle + half) / (1 + Z * Z / n)


class EvaluationProtocol(Protocol):
    """A way to measure embeddings: the same scores for the same examples, whoever asks."""

    definition: Definition

    def run(self, bank: Examples, queries: Examples, device: torch.device = CPU) -> Scores:
        """Classify the queries by what is known of the bank. Raises ValueError: no queries, or an empty bank where it is
        needed.
        """
        ...


class Knn:
    """A vote of the nearest images of the bank: Wu et al. 2018, arXiv:1805.01978, section 3.4."""

    definition = KNN

    def run(self, bank: Examples, queries: Examples, device: torch.device = CPU) -> Scores:
        _check(bank, queries)
        k, temperature = self.definition.fixed["k"], self.definition.fixed["temperature"]
        rows, asked = (torch.as_tensor(each.rows, device=device) for each in (bank, queries))
        predicted = knn_predict(rows, bank.labels, asked, k=k, temperature=temperature)
        return Scores(predicted.cpu().numpy() == queries.labels, {"k": min(k, len(bank.labels))})


class Linear:
    """Logistic regression on the bank, its C chosen on a drawn tenth of it."""

    definition = LINEAR

    def run(self, bank: Examples, queries: Examples, device: torch.device = CPU) -> Scores:
        _check(bank, queries)
        x, asked = _unit(bank.rows, device), _unit(queries.rows, device)
        known, numbers = np.unique(bank.labels, return_inverse=True)
        classes = torch.as_tensor(numbers, device=device)
        c = self._choose(x, classes, len(known))
        w = Regression(x, classes, len(known)).fit(c, tolerance=self.definition.fixed["tolerance"])
        return Scores(known[predict(asked, w).cpu().numpy()] == queries.labels, {"C": c})

    def _choose(self, x: Tensor, classes: Tensor, num_classes: int) -> float:
        """The C of the grid that classifies a drawn tenth best when it is fitted to the others; of equals the lowest."""
        drawn = torch.from_numpy(rng.permutation(len(x), DRAW)).to(x.device)
        judges, others = drawn.tensor_split([len(x) // 10])
        if not len(judges):
            return 1.0  # fewer than ten examples choose nothing
        regression = Regression(x[others], classes[others], num_classes)
        right = {}
        for c in self.definition.fixed["C"]:
            w = regression.fit(c, tolerance=self.definition.fixed["tolerance"])
            right[c] = int((predict(x[judges], w) == classes[judges]).sum())
        return max(right, key=right.__getitem__)


def _unit(rows: NDArray[np.float32], device: torch.device) -> Tensor:
    return F.normalize(torch.as_tensor(rows, device=device).double(), dim=1)


def _check(bank: Examples, queries: Examples) -> None:
    if not len(bank.rows) or not len(queries.rows):
        raise ValueError(f"bank has {len(bank.rows)} examples, queries {len(queries.rows)}; both need one")


PROTOCOLS: dict[str, EvaluationProtocol] = {each.definition.version: each for each in (Knn(), Linear())}
