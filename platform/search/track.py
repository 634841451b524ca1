"""The search in MLflow: a run that its trials are children of. It never stops the search."""

import logging
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from vergence.platform.masking import masked
from vergence.platform.mlflow_errors import explain
from vergence.platform.mlflow_store import artifacts_of, impatient_client, tracking_uri
from vergence.platform.runs.track import MAX_PARAM, RUN_TAG

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
        from mlflow.entities import Param, RunTag

        self._client = client = impatient_client(self._undo)
        everywhere = [experiment.experiment_id for experiment in client.search_experiments()]
        found = client.search_runs(everywhere, f"tags.`{RUN_TAG}` = '{self.identity}'", max_results=1)
        run = found[0] if found else self._create(client)
        client.update_run(run.info.run_id, status="RUNNING")
        known = run.data.params
        client.log_batch(
            run.info.run_id,
            params=[
                Param(name, masked(str(value))[:MAX_PARAM])
                for name, value in params.items()
                if name not in known
            ],
            tags=[RunTag(name, masked(value)) for name, value in tags.items()],
        )
        self.run_id = run.info.run_id

    def _create(self, client: Any) -> Any:
        experiment = client.get_experiment_by_name(self.experiment)
        if experiment is not None:
            experiment_id = experiment.experiment_id
        else:
            location = artifacts_of(tracking_uri(), self.experiment)
            experiment_id = client.create_experiment(self.experiment, artifact_location=location)
        return client.create_run(experiment_id, run_name=self.name, tags={RUN_TAG: self.identity})

    def _close(self, status: str, metrics: Mapping[str, float], files: Mapping[str, Path]) -> None:
        for name, value in metrics.items():
            self._client.log_metric(self.run_id, name, value)
        for folder, path in files.items():
            if path.is_dir():
                self._client.log_artifacts(self.run_id, str(path), folder)
            elif path.exists():
                self._client.log_artifact(self.run_id, str(path), folder)
        self._client.set_terminated(self.run_id, status)
