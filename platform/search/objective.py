"""What a search compares its trials by: figures that mean the same whatever the settings are."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from vergence.platform.runs.records import Metrics, Monitored, Record


class Objective(NamedTuple):
    """words: what it is; of: where the monitor's record has it, None: it is measured apart; labels: it needs classes."""

    words: str
    of: str | None
    labels: bool


OBJECTIVES = {
    "knn": Objective("kNN top-1 within the holdout, leave-one-out, as the monitor has it", "knn", True),
    "linear": Objective("linear-v1: a linear classifier on the training samples, on the holdout", None, True),
    "rankme": Objective(
        "RankMe of the holdout (arXiv:2210.02885), without labels", "h_effective_rank", False
    ),
}
REFUSED = {
    "loss": "the loss compares nothing: losses at another temperature or weight are other functions, and a collapsed "
    f"model has a low one; use one of {', '.join(OBJECTIVES)}"
}


class Reading(NamedTuple):
    """What the records of a run say of the state after some epochs; None: they do not say it."""

    score: float | None
    loss: float | None  # mean over the records of the last epoch


def reading(records: Sequence[Record], epochs: int, of: str | None) -> Reading:
    """The score `of` the monitor's record after `epochs`, and the loss of the epoch before it."""
    found = [record for record in records if isinstance(record, Monitored) and record.epoch == epochs]
    if not found:
        return Reading(None, None)
    last = found[-1]
    per_epoch = (last.step + 1) // epochs
    losses = [
        record.values["loss"]
        for record in records
        if isinstance(record, Metrics)
        and "loss" in record.values
        and last.step - per_epoch < record.step <= last.step
    ]
    score = last.values.get(of) if of is not None else None
    return Reading(
        score if score is None or math.isfinite(score) else None,
        sum(losses) / len(losses) if losses else None,
    )
