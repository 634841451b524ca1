"""Pictures of a run: loss, kNN and learning rate over steps."""

from pathlib import Path

from vergence.platform.runs.records import Tail


def draw(logs: Path) -> Path:
    """Draw logs/plots/training.png from logs/metrics.jsonl and return its path."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    records = Tail(logs).read()
    steps = [record for record in records if "loss" in record]
    scores = [record for record in records if "knn" in record]
    figure, axes = pyplot.subplots(1, 3, figsize=(12, 3.2), layout="constrained")
    curves = [
        ("loss", steps, "loss"),
        ("kNN top-1 on the holdout", scores, "knn"),
        ("learning rate", steps, "lr"),
    ]
    for axis, (title, rows, key) in zip(axes, curves):
        axis.plot(
            [row["step"] for row in rows], [row[key] for row in rows], marker="o" if key == "knn" else ""
        )
        axis.set(title=title, xlabel="step")
        axis.grid(alpha=0.3)
    path = logs / "plots" / "training.png"
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
    return path
