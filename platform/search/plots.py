"""Pictures of a search: score over each parameter, all parameters of a trial as one line, the best over time."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from vergence.platform.search.space import Choice, Domain, Space, is_number
from vergence.platform.search.trials import Trial, winner

FADED = 0.35  # of a trial that was not trained as long as the winner


def draw(
    folder: Path, trials: Sequence[Trial], space: Space, objective: str, direction: Literal["max", "min"]
) -> None:
    """Draw scores.png, parallel.png and budget.png; none where no trial has a score yet."""
    best = winner(trials, direction)
    scored = [trial for trial in trials if trial.score is not None and trial.verdict != "dead"]
    if best is None:
        return
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    folder.mkdir(parents=True, exist_ok=True)
    for name, picture in (("scores", _scores), ("parallel", _parallel), ("budget", _budget)):
        figure = picture(pyplot, scored, best, space, objective, direction)
        figure.savefig(folder / f"{name}.png", dpi=120)
        pyplot.close(figure)


def _scores(
    pyplot: Any, trials: Sequence[Trial], best: Trial, space: Space, objective: str, direction: str
) -> Any:
    """Score over each parameter, the other parameters being whatever they were."""
    figure, axes = pyplot.subplots(
        1, len(space), figsize=(1 + 4 * len(space), 3.4), layout="constrained", squeeze=False
    )
    for axis, (path, domain) in zip(axes[0], space.items()):
        for trial in trials:
            x = position(domain, trial.parameters[path])
            style = {"marker": "o", "color": "C0", "alpha": 1 if trial.epochs == best.epochs else FADED}
            axis.plot(x, trial.score, **style)
        if len(space) == 1:
            line = sorted(
                (position(domain, t.parameters[path]), t.score) for t in trials if t.epochs == best.epochs
            )
            axis.plot(*zip(*line), color="C0", alpha=0.5)
        axis.plot(position(domain, best.parameters[path]), best.score, "*", color="C3", markersize=14)
        axis.set(xlabel=path, ylabel=objective)
        ticks(axis, domain)
        axis.grid(alpha=0.3)
    return figure


def _parallel(
    pyplot: Any, trials: Sequence[Trial], best: Trial, space: Space, objective: str, direction: str
) -> Any:
    """Parallel coordinates: an axis for each parameter and one for the score, a line for each trial."""
    figure, axis = pyplot.subplots(figsize=(2 + 2.2 * len(space), 3.6), layout="constrained")
    scores = [trial.score for trial in trials if trial.score is not None]
    low, high = min(scores), max(scores)
    shades = pyplot.get_cmap("viridis")
    for trial in trials:
        height = share(trial.score, low, high)
        points = [fraction(domain, trial.parameters[path]) for path, domain in space.items()]
        is_best = trial.number == best.number
        axis.plot([*points, height], color="C3" if is_best else shades(height), lw=2.5 if is_best else 1.2)
    names = [*space, objective]
    axis.set(xticks=range(len(names)), ylim=(-0.08, 1.08), yticks=[])
    axis.set_xticklabels(names)
    for place, (bottom, top) in enumerate([*map(ends, space.values()), (f"{low:.3g}", f"{high:.3g}")]):
        axis.axvline(place, color="0.6", lw=0.8)
        axis.annotate(bottom, (place, -0.07), ha="center", fontsize=8)
        axis.annotate(top, (place, 1.03), ha="center", fontsize=8)
    for side in ("left", "right", "top", "bottom"):
        axis.spines[side].set_visible(False)
    return figure


def _budget(
    pyplot: Any, trials: Sequence[Trial], best: Trial, space: Space, objective: str, direction: str
) -> Any:
    """The best score so far over the epochs that the search has spent."""
    figure, axis = pyplot.subplots(figsize=(5.4, 3.4), layout="constrained")
    epochs, scores = spent(trials, direction)
    axis.step(epochs, scores, where="post", marker="o", markersize=3)
    axis.set(xlabel="epochs of all trials", ylabel=f"best {objective} so far")
    axis.grid(alpha=0.3)
    return figure


def spent(trials: Sequence[Trial], direction: str) -> tuple[list[int], list[float]]:
    """(epochs of all trials so far, best score so far) at each result, in the order in which results came."""
    better, events = (max if direction == "max" else min), []
    for trial in trials:
        before = 0
        for result in trial.results:
            events.append((result.ended_s, result.epochs - before, result.score))
            before = result.epochs
    epochs, scores, total = list[int](), list[float](), 0
    for _, more, score in sorted(events, key=lambda event: event[0]):
        total += more
        if score is not None:
            epochs.append(total)
            scores.append(better(scores[-1], score) if scores else score)
    return epochs, scores


def position(domain: Domain, value: Any) -> float:
    """Where a value stands on its axis: numbers where they are, choices of words in their order."""
    if isinstance(domain, Choice) and not all(map(is_number, domain.values)):
        return float(domain.values.index(value))
    return float(value)


def ticks(axis: Any, domain: Domain) -> None:
    """Scale and ticks of an axis of values of this domain."""
    if domain.is_log:
        axis.set_xscale("log")
    if isinstance(domain, Choice):
        axis.set_xticks([position(domain, value) for value in domain.values])
        axis.set_xticklabels([f"{value:g}" if is_number(value) else str(value) for value in domain.values])
        axis.minorticks_off()


def fraction(domain: Domain, value: Any) -> float:
    """Where a value stands between the ends of its domain, 0 to 1."""
    if isinstance(domain, Choice):
        return share(domain.values.index(value), 0, len(domain.values) - 1)
    if domain.is_log:
        return share(math.log(value), math.log(domain.low), math.log(domain.high))
    return share(value, domain.low, domain.high)


def share(value: float | None, low: float, high: float) -> float:
    return 0.5 if value is None or high <= low else (value - low) / (high - low)


def ends(domain: Domain) -> tuple[str, str]:
    if isinstance(domain, Choice):
        return str(domain.values[0]), str(domain.values[-1])
    return f"{domain.low:g}", f"{domain.high:g}"
