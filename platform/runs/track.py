"""MLflow tracking that never stops training.

Records are read from the run's metrics.jsonl, which is the truth; one thread sends them on. When the
server is away it says so once and goes on trying: what is missing is sent later, at the latest when the
same command is given again.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, PositiveInt

from vergence.platform.home import home
from vergence.platform.mlflow_store import impatient_client, tracking_uri
from vergence.platform.runs.records import Tail
from vergence.platform.runs.run import Run

log = logging.getLogger(__name__)

FLUSH_S = 2.0
RETRY_S = 15.0
CLOSE_S = 20.0
RUN_TAG = "vergence.run"  # of an MLflow run: the identity of the run that it tracks


class TrackConfig(BaseModel, frozen=True, extra="forbid", strict=True):
    experiment: str = Field("vergence", description="MLflow experiment")
    register_as: str | None = Field(
        None,
        alias="register",
        pattern=r"^[^/:@]+$",
        description="name of the MLflow registered model; null = not registered",
    )
    every_steps: PositiveInt = Field(10, description="steps between metric records")


class Tracker:
    """Sends a run's records to MLflow from a thread of its own.

    The run's facts hold its identity, `id`: an MLflow run that carries it as a tag is gone on with, so a run has
    one MLflow run even if the folder has forgotten which.

    params: flat settings of the resolved recipe; tags: data digest, code version and the like.
    says: prints one line to the user.
    """

    def __init__(
        self,
        run: Run,
        experiment: str,
        params: Mapping[str, Any],
        tags: Mapping[str, str],
        says: Callable[[str], None],
    ) -> None:
        self.run, self.experiment, self.params, self.tags, self.says = run, experiment, params, tags, says
        self.run_id: str | None = None  # of the MLflow run, once it is open
        self.failed_once = False
        self._identity: str = run.facts()["id"]
        self._tail = Tail(run.logs)
        self._pending: list[dict[str, Any]] = []
        self._client: Any = None
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def close(self, status: str, files: Mapping[str, Path]) -> bool:
        """Send the rest and end the MLflow run (FINISHED, KILLED, FAILED); whether all has arrived.

        files: artifact folder -> file or folder. Waits at most 20 s.
        """
        self._closing.set()
        self._thread.join(CLOSE_S)
        if self._thread.is_alive() or not self._attempt(self._flush):
            return False
        return self._attempt(lambda: self._finish(status, files))

    def _work(self) -> None:
        while not self._closing.is_set():
            arrived = self._attempt(self._flush)
            self._closing.wait(FLUSH_S if arrived else RETRY_S)

    def _attempt(self, send: Callable[[], None]) -> bool:
        try:
            send()
            return True
        except Exception as error:
            log.info("MLflow: %s", error)
            if not self.failed_once:
                self.failed_once = True
                self.says(
                    f"MLflow at {tracking_uri()} does not answer: training goes on, the records wait in "
                    f"{self.run.logs / 'metrics.jsonl'}"
                )
            return False

    def _flush(self) -> None:
        self._open()
        self._pending += self._tail.read()
        metrics = []
        for record in self._pending:
            stamp = int(record.get("time", time.time()) * 1000)
            for name, value in record.items():
                if name not in ("step", "time", "epoch") and isinstance(value, int | float):
                    metrics.append((name, float(value), stamp, record["step"]))
        from mlflow.entities import Metric

        for start in range(0, len(metrics), 900):
            batch = [Metric(*metric) for metric in metrics[start : start + 900]]
            self._client.log_batch(self.run_id, metrics=batch)
        if self._pending:
            self.run.remember(mlflow_position=self._tail.position)
        self._pending = []

    def _open(self) -> None:
        """Connect, and create the run or open it again."""
        if self.run_id is not None:
            return
        self._client = impatient_client()
        facts = self.run.facts()
        known = facts.get("mlflow_run")
        run_id = known or self._find() or self._create()
        self._client.update_run(run_id, status="RUNNING")
        if run_id == known:
            self._tail = Tail(self.run.logs, after=facts.get("mlflow_position", -1.0))
        else:
            self._describe(run_id)
            self.run.remember(mlflow_run=run_id, mlflow_position=-1.0)
        self.run_id = run_id

    def _find(self) -> str | None:
        """The newest MLflow run with this run's identity, in any experiment."""
        experiments = [experiment.experiment_id for experiment in self._client.search_experiments()]
        wanted = f"tags.`{RUN_TAG}` = '{self._identity}'"
        found = self._client.search_runs(experiments, wanted, max_results=1)
        return found[0].info.run_id if found else None

    def _create(self) -> str:
        experiment = self._client.get_experiment_by_name(self.experiment)
        if experiment is not None:
            experiment_id = experiment.experiment_id
        elif tracking_uri().startswith("sqlite"):
            # MLflow's own default is the current folder
            location = (home() / "artifacts" / self.experiment).as_uri()
            experiment_id = self._client.create_experiment(self.experiment, artifact_location=location)
        else:
            experiment_id = self._client.create_experiment(self.experiment)
        tags = {RUN_TAG: self._identity}  # with the run, not after it: a kill in between would hide it
        run_id: str = self._client.create_run(experiment_id, run_name=self.run.name, tags=tags).info.run_id
        return run_id

    def _describe(self, run_id: str) -> None:
        """Parameters and tags that the MLflow run has not yet; MLflow changes no parameter."""
        from mlflow.entities import Param, RunTag

        known = self._client.get_run(run_id).data.params
        params = [Param(name, str(value)[:6000]) for name, value in self.params.items() if name not in known]
        tags = [RunTag(name, value) for name, value in self.tags.items()]
        self._client.log_batch(run_id, params=params, tags=tags)

    def _finish(self, status: str, files: Mapping[str, Path]) -> None:
        for folder, path in files.items():
            if path.is_dir():
                self._client.log_artifacts(self.run_id, str(path), folder)
            elif path.exists():
                self._client.log_artifact(self.run_id, str(path), folder)
        self._client.set_terminated(self.run_id, status)
