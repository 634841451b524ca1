"""The MLflow store: where it is, and clients of it that wait seconds, not MLflow's four minutes, for an answer."""

import contextlib
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from vergence.platform.home import home
from vergence.platform.mlflow_moved import follow

# What MLflow waits for a server: a reader or a tracker gives up soon, a hand-over has large files to send.
IMPATIENT = {"TIMEOUT": 5, "MAX_RETRIES": 1, "BACKOFF_FACTOR": 1}
PATIENT = {"TIMEOUT": 120, "MAX_RETRIES": 2, "BACKOFF_FACTOR": 1}
CHATTY = "mlflow", "alembic"  # loggers; what they report is raised, too


def tracking_uri() -> str:
    """MLflow's tracking and registry store: MLFLOW_TRACKING_URI, else a database in the state folder."""
    return os.environ.get("MLFLOW_TRACKING_URI") or sqlite_uri(home() / "mlflow.db")


def sqlite_uri(path: Path) -> str:
    """The address of an SQLite store."""
    if not {"%", "?"} & set(str(path)):
        return f"sqlite:///{path}"
    # SQLAlchemy decodes the path; without the driver's name MLflow makes a folder of the undecoded one
    return f"sqlite+pysqlite:///{quote(str(path))}"


def database(uri: str) -> Path | None:
    """The file of an SQLite store; None for any other."""
    found = re.fullmatch(r"sqlite(?:\+\w+)?:///([^?]+)(?:\?.*)?", uri)
    return Path(unquote(found[1])).absolute() if found and found[1] != ":memory:" else None


def artifacts_of(uri: str, experiment: str) -> str | None:
    """Where a new experiment keeps its files: beside an SQLite store, whose own default is the current folder.

    None: the store knows better.
    """
    file = database(uri)
    return (file.parent / "artifacts" / experiment).as_uri() if file else None


def impatient_client(undo: contextlib.ExitStack) -> Any:
    """An MlflowClient for a thread that must never hold anything up; imported late, MLflow costs a second.

    undo: puts back what MLflow is told through the environment, and its loggers, once the client is of no more use.
    """
    wanted = {f"MLFLOW_HTTP_REQUEST_{name}": str(value) for name, value in IMPATIENT.items()}
    for name, value in wanted.items():
        if name not in os.environ:
            os.environ[name] = value
            undo.callback(os.environ.pop, name, None)
    uri = tracking_uri()
    follow(database(uri))
    from mlflow import MlflowClient

    for name in CHATTY:  # after the import, which sets them
        logger = logging.getLogger(name)
        undo.callback(logger.setLevel, logger.level)
        logger.setLevel(logging.CRITICAL)
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


@contextlib.contextmanager
def store(uri: str, *, patient: bool = False) -> Iterator[Any]:
    """An MlflowClient of the store at `uri`, which is also MLflow's current one inside the block.

    MLflow keeps the current store in globals and in the environment; both are put back. Its chatter
    is off and so is loading of pickles, which run code.
    """
    settings = {
        "MLFLOW_TRACKING_URI": uri,
        "MLFLOW_REGISTRY_URI": uri,
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    }
    for name, value in (PATIENT if patient else IMPATIENT).items():
        variable = f"MLFLOW_HTTP_REQUEST_{name}"
        chosen = int(os.environ.get(variable, value))  # a tracker of this process may have chosen impatience
        settings[variable] = str(max(chosen, value) if patient else chosen)
    follow(database(uri))
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    import mlflow
    from mlflow.tracking._model_registry import utils as registry_globals
    from mlflow.tracking._tracking_service import utils as tracking_globals

    loggers = {logging.getLogger(name): logging.getLogger(name).level for name in CHATTY}
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    # what is set, if anything is: asking for it would give a default, which is another thing once it is set
    tracking: Any = tracking_globals._tracking_uri
    registry: Any = registry_globals._registry_uri
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    try:
        yield mlflow.MlflowClient(uri, uri)
    finally:
        mlflow.set_tracking_uri(tracking)
        mlflow.set_registry_uri(registry)
        for logger, level in loggers.items():
            logger.setLevel(level)
        for name, previous in before.items():
            os.environ.pop(name, None) if previous is None else os.environ.update({name: previous})
