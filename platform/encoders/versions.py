"""Versions of a registered model: which alias means which, how aliases move, and what a version is told.

champion is what readers load, candidate waits for a decision, previous was champion before.
"""

import contextlib
import json
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple

from vergence.platform.errors import UserError, VergenceError, nearest
from vergence.platform.evaluate.report import Report
from vergence.platform.masking import masked
from vergence.platform.mlflow_errors import explain
from vergence.platform.mlflow_store import database, store, tracking_uri
from vergence.platform.text import printable

CANDIDATE, CHAMPION, PREVIOUS = "candidate", "champion", "previous"
REPORTS = "evaluations"  # folder of a version's files
GATE = "vergence.gate"  # tag of a model: by what its candidates are measured
MAX_DATASET = 36, 500  # characters of a digest and of a name, MLflow's limits

Outcome = Literal["promoted", "declined", "rolled back"]


class Aliases(NamedTuple):
    """Versions; None where the model has no such alias."""

    candidate: int | None
    champion: int | None
    previous: int | None


@contextlib.contextmanager
def registry(asked: str, *, patient: bool = False) -> Iterator[Any]:
    """An MlflowClient of the registry, which is also MLflow's current one inside the block.

    Raises UserError: there is none yet; VergenceError, in one line that begins with `asked`: what MLflow says otherwise.
    """
    uri = tracking_uri()
    file = database(uri)
    if file is not None and not file.exists():
        raise UserError(
            f"{asked}: there is no registry at {uri} yet; train something, or set MLFLOW_TRACKING_URI"
        )
    try:
        with store(uri, patient=patient) as client:
            yield client
    except VergenceError:
        raise
    except Exception as error:  # MLflow's own, and SQLAlchemy's of a damaged database
        raise VergenceError(f"{asked}: {explain(error, uri)}") from None


def all_aliases(client: Any, name: str, asked: str) -> dict[str, int]:
    """Alias -> version of a model; UserError naming the nearest: there is no such model."""
    import mlflow

    try:
        return {key: int(value) for key, value in client.get_registered_model(name).aliases.items()}
    except mlflow.MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
    models = [model.name for model in client.search_registered_models()]
    known = nearest(name, models) if models else "it has none yet"
    raise UserError(f"{asked}: no such model in the registry at {tracking_uri()} ({known})")


def aliases_of(client: Any, name: str, asked: str) -> Aliases:
    """The three aliases of a model; UserError: there is no such model."""
    known = all_aliases(client, name, asked)
    return Aliases(known.get(CANDIDATE), known.get(CHAMPION), known.get(PREVIOUS))


def make_champion(client: Any, name: str, before: Aliases) -> None:
    """The candidate becomes champion, the old champion previous; there is no candidate any more.

    `champion` moves in one call, after `previous`: a reader sees the old one or the new one, and after a kill in between
    the same call finishes. If the store fails before that, `previous` is put back and its error is raised.
    """
    assert before.candidate is not None, "somebody to promote"
    if before.champion not in (None, before.candidate):
        client.set_registered_model_alias(name, PREVIOUS, str(before.champion))
    try:
        client.set_registered_model_alias(name, CHAMPION, str(before.candidate))
    except Exception:
        with contextlib.suppress(Exception):
            _put_back(client, name, before.previous)
        raise
    client.delete_registered_model_alias(name, CANDIDATE)


def go_back(client: Any, name: str, before: Aliases) -> None:
    """The previous champion is champion again, by one call."""
    client.set_registered_model_alias(name, CHAMPION, str(before.previous))


def decide(client: Any, name: str, version: int, outcome: Outcome, reason: str) -> None:
    """Tell a version what was decided about it and why; earlier decisions stay beside it."""
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    told = masked(printable(f"{outcome}: {reason}"))
    client.set_model_version_tag(name, str(version), f"decision.{now}", told)
    client.set_model_version_tag(name, str(version), "decision", outcome)


def record(client: Any, name: str, version: int, report: Report) -> None:
    """Keep an evaluation with a version: the report among its files, each figure as a metric of its logged model.

    Raises VergenceError: the version was registered by something else and has no logged model.
    """
    from mlflow.entities import Metric

    row = client.get_model_version(name, str(version))
    model_id = row.source.removeprefix("models:/")
    if model_id == row.source or not row.run_id:
        raise VergenceError(
            f"models:/{name}/{version}: registered by something else than Vergence, it keeps no evaluation"
        )
    test, now = report.data.test, int(time.time() * 1000)
    digest, dataset = test.digest[: MAX_DATASET[0]], masked(test.shards)[: MAX_DATASET[1]]
    metrics = [
        Metric(key, top1, now, 0, model_id, dataset_name=dataset, dataset_digest=digest, run_id=row.run_id)
        for key, top1 in report.scores.items()
    ]
    with tempfile.TemporaryDirectory() as folder:
        file = (
            Path(folder) / f"{'_'.join(report.scores)}-{test.digest[:12]}.json"
        )  # the same test again: replaced
        file.write_text(masked(json.dumps(report.dump(), indent=2)) + "\n", encoding="utf-8")
        client.log_model_artifact(model_id, str(file), REPORTS)
    client.log_batch(row.run_id, metrics=metrics)


def _put_back(client: Any, name: str, previous: int | None) -> None:
    if previous is None:
        client.delete_registered_model_alias(name, PREVIOUS)
    else:
        client.set_registered_model_alias(name, PREVIOUS, str(previous))
