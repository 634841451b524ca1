"""Pictures of a run: loss, kNN and learning rate over steps."""

from pathlib import Path

from vergence.platform.runs.records import FirstStep, Tail


def draw(logs: Path) -> Path:
    """Draw logs/plots/training.png from logs/metrics.jsonl and return its path."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    with Tail(logs) as tail:
        records = [record for record in tail.read() if not isinstance(record, FirstStep)]
    figure, axes = pyplot.subplots(1, 3, figsize=(12, 3.2), layout="constrained")
    curves = {"loss": "loss", "kNN top-1 on the holdout": "knn", "learning rate": "lr"}
    for axis, (title, name) in zip(axes, curves.items()):
        points = [(record.step, record.values[name]) for record in records if name in record.values]
        axis.plot(*zip(*points), marker="o" if name == "knn" else "")
        axis.set(title=title, xlabel="step")
        axis.grid(alpha=0.3)
    path = logs / "plots" / "training.png"
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
    return path
