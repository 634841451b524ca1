"""Pictures of a run: loss, what the monitor measured, and learning rate over steps."""

from collections.abc import Sequence
from pathlib import Path

from vergence.platform.runs.records import FirstStep, Metrics, Monitored, Tail

MONITORED = {"knn": "kNN top-1 on the holdout", "h_effective_rank": "effective rank of h on the holdout"}


def curves_of(records: Sequence[Metrics | Monitored]) -> dict[str, str]:
    """Title -> name of the curves of which something was measured; without classes there is no kNN."""
    measured = {name for record in records for name in record.values}
    curves = {"loss": "loss", **{title: name for name, title in MONITORED.items()}, "learning rate": "lr"}
    return {title: name for title, name in curves.items() if name in measured} or {"loss": "loss"}


def draw(logs: Path) -> Path:
    """Draw logs/plots/training.png from logs/metrics.jsonl and return its path."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    with Tail(logs) as tail:
        records = [record for record in tail.read() if not isinstance(record, FirstStep)]
    curves = curves_of(records)
    figure, axes = pyplot.subplots(
        1, len(curves), figsize=(4 * len(curves), 3.2), layout="constrained", squeeze=False
    )
    for axis, (title, name) in zip(axes[0], curves.items()):
        points = [(record.step, record.values[name]) for record in records if name in record.values]
        axis.plot(*zip(*points), marker="o" if name in MONITORED else "")
        axis.set(title=title, xlabel="step")
        axis.grid(alpha=0.3)
    path = logs / "plots" / "training.png"
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
    return path
