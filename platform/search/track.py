"""The search in MLflow: a run that its trials are children of. It never stops the search."""

import logging
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from vergence.platform import mlflow_runs
from vergence.platform.masking import masked
from vergence.platform.mlflow_errors import explain
from vergence.platform.mlflow_store import impatient_client, tracking_uri

log = logging.getLogger(__name__)


class ParentRun:
    """One MLflow run for a search, found again by the search's identity. says: prints one line to the user."""

    def __init__(self, name: str, experiment: str, identity: str, says: Callable[[str], None]) -> None:
        self.name, self.experiment, self.identity, self.says = name, experiment, identity, says
        self.run_id: str | None = None
        self._client: Any = None
        self._undo = ExitStack()

    def open(self, params: Mapping[str, Any], tags: Mapping[str, str]) -> str | None:
        """The id of the run, made or opened again; None if the store does not answer, which is said."""
        self._try(lambda: self._open(params, tags), "the trials are not grouped under one run")
        return self.run_id

    def close(self, status: str, metrics: Mapping[str, float], files: Mapping[str, Path]) -> None:
        """Log what was found and end the run (FINISHED, KILLED, FAILED). files: artifact folder -> file or folder."""
        with self._undo:
            if self.run_id is not None:
                self._try(
                    lambda: self._close(status, metrics, files), "table and plots are in the folder only"
                )

    def _try(self, send: Callable[[], None], then: str) -> None:
        try:
            send()
        except Exception as error:  # MLflow's own, and those of what it stands on
            log.info("MLflow: %s", masked(str(error)))
            self.says(f"{explain(error, tracking_uri())}; {then}")

    def _open(self, params: Mapping[str, Any], tags: Mapping[str, str]) -> None:
        self._client = client = impatient_client(self._undo)
        run_id = mlflow_runs.find(client, self.identity) or mlflow_runs.create(
            client, self.experiment, self.name, self.identity
        )
        client.update_run(run_id, status="RUNNING")
        mlflow_runs.describe(client, run_id, params, tags)
        self.run_id = run_id

    def _close(self, status: str, metrics: Mapping[str, float], files: Mapping[str, Path]) -> None:
        assert self.run_id is not None
        for name, value in metrics.items():
            self._client.log_metric(self.run_id, name, value)
        mlflow_runs.finish(self._client, self.run_id, status, files)
