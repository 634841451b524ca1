"""MLflow tracking that never stops training.

Records are read from the run's metrics.jsonl, which is the truth; one thread sends them on. When the
server is away it says so once and goes on trying: what is missing is sent later, at the latest when the
same command is given again. A store that refuses from the start ends the command before it trains.
"""

import logging
import threading
import unicodedata
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, PositiveInt, field_validator

from vergence.platform import mlflow_runs
from vergence.platform.errors import UserError, VergenceError
from vergence.platform.masking import masked
from vergence.platform.mlflow_errors import explain, is_outage
from vergence.platform.mlflow_store import impatient_client, tracking_uri
from vergence.platform.runs.records import FirstStep, Record, Tail
from vergence.platform.runs.run import Run

log = logging.getLogger(__name__)

FLUSH_S = 2.0
RETRY_S = 15.0
CLOSE_S = 20.0
ANSWER_S = 5.0  # that a start waits for, at most
UNUSABLE = ":@?#%'\"`\\"  # characters that break MLflow's filters or models:/ addresses
MAX_NAME_BYTES = 250  # a folder's name has 255, MLflow's columns 256


def _valid_name(name: str) -> str:
    """A name that MLflow holds, finds again by filter or models:/ address, and that can be a folder."""
    bad = next((c for c in name if c in UNUSABLE or unicodedata.category(c).startswith("C")), None)
    if bad is not None:
        raise ValueError(f"MLflow cannot hold and find a name with {bad!r}; it may have none of {UNUSABLE}")
    if not name.strip() or name != name.strip():
        raise ValueError("a name for MLflow is not empty and does not begin or end with a space")
    if len(name.encode()) > MAX_NAME_BYTES:
        raise ValueError(f"a name for MLflow has at most {MAX_NAME_BYTES} bytes")
    if any(part in ("", ".", "..") for part in name.split("/")):
        raise ValueError("a name for MLflow is also a folder: no part of it is empty, . or ..")
    return name


class TrackConfig(BaseModel, frozen=True, extra="forbid", strict=True):
    experiment: str = Field("vergence", description="MLflow experiment")
    register_as: str | None = Field(
        None, alias="register", description="name of the MLflow registered model; null = not registered"
    )
    every_steps: PositiveInt = Field(10, description="steps between metric records")

    @field_validator("experiment", "register_as")
    @classmethod
    def _usable(cls, name: str | None) -> str | None:
        return None if name is None else _valid_name(name)

    @field_validator("register_as")
    @classmethod
    def _no_slash(cls, name: str | None) -> str | None:
        if name is not None and "/" in name:
            raise ValueError("MLflow cannot hold a registered model with '/' in its name")
        return name


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
        identity = run.facts().id
        assert identity, "a run has its identity before it is tracked"
        self._identity = identity
        self._tail = Tail(run.logs)
        self._pending: list[Record] = []
        self._client: Any = None
        self._undo = ExitStack()  # of what the client has changed in this process
        self._error: Exception | None = None  # of the last attempt
        self._told: set[str] = set()
        self._may_speak = False
        self._sending = threading.Lock()
        self._answered, self._closing = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def check(self, timeout_s: float = ANSWER_S) -> None:
        """Wait a little for the store's first answer: UserError if it refuses; that it is away stops nothing."""
        self._answered.wait(timeout_s)
        self._may_speak = True
        if self._error is not None and not is_outage(self._error):
            raise UserError(f"{self._explain(self._error)}; nothing was trained")
        self._tell("training goes on, the records wait in")

    def open(self) -> str:
        """The id of the MLflow run, which is made or opened now if the store was away until now.

        Raises VergenceError: the store is still away, or refuses.
        """
        if not self._attempt(self._open):
            assert self._error is not None
            raise VergenceError(self._explain(self._error))
        assert self.run_id is not None
        return self.run_id

    def close(self, status: str, files: Mapping[str, Path]) -> bool:
        """Send the rest and end the MLflow run (FINISHED, KILLED, FAILED); whether all has arrived.

        files: artifact folder -> file or folder. Waits at most 20 s.
        """
        self._closing.set()
        self._thread.join(CLOSE_S)
        with self._undo:
            if self._thread.is_alive():
                return False
            arrived = self._attempt(self._flush) and self._attempt(lambda: self._finish(status, files))
            self._tail.close()
            self._tell("the same command sends the records, which wait in")
            return arrived

    def _work(self) -> None:
        while not self._closing.is_set():
            arrived = self._attempt(self._flush)
            self._answered.set()
            if self._may_speak:
                self._tell("training goes on, the records wait in")
            self._closing.wait(FLUSH_S if arrived else RETRY_S)

    def _attempt(self, send: Callable[[], None]) -> bool:
        with self._sending:
            try:
                send()
                self._error = None
            except Exception as error:  # MLflow's own, and those of what it stands on
                log.info("MLflow: %s", masked(str(error)))
                self._error = error
        return self._error is None

    def _tell(self, then: str) -> None:
        """Say what is wrong, if anything is and it has not been said yet."""
        if self._error is not None and explain(self._error, tracking_uri()) not in self._told:
            self.says(f"{self._explain(self._error)}; {then} {self.run.logs / 'metrics.jsonl'}")

    def _explain(self, error: Exception) -> str:
        line = explain(error, tracking_uri())
        self._told.add(line)
        return line

    def _flush(self) -> None:
        self._open()
        self._pending += self._tail.read()
        from mlflow.entities import Metric

        metrics = [
            Metric(name, value, int(record.time_s * 1000), record.step)
            for record in self._pending
            if not isinstance(record, FirstStep)
            for name, value in record.values.items()
        ]
        for start in range(0, len(metrics), 900):
            batch = metrics[start : start + 900]
            self._client.log_batch(self.run_id, metrics=batch)
        if self._pending:
            self.run.remember(mlflow_position=self._tail.position)
        self._pending = []

    def _open(self) -> None:
        """Connect, and create the run or open it again."""
        if self.run_id is not None:
            return
        self._client = impatient_client(self._undo)
        facts = self.run.facts()
        known = facts.mlflow_run
        if known is not None and self._reopened(known):
            self._tail.close()
            self._tail = Tail(self.run.logs, after=facts.mlflow_position)
            self.run_id = known
        else:
            run_id = mlflow_runs.find(self._client, self._identity) or mlflow_runs.create(
                self._client, self.experiment, self.run.name, self._identity
            )
            self._reopened(run_id)
            mlflow_runs.describe(self._client, run_id, self.params, self.tags)
            self.run.remember(mlflow_run=run_id, mlflow_position=-1.0)
            self.run_id = run_id
        self._answered.set()

    def _reopened(self, run_id: str) -> bool:
        """Whether this store has the MLflow run; it is RUNNING then."""
        from mlflow import MlflowException

        try:
            self._client.update_run(run_id, status="RUNNING")
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return False
        return True

    def _finish(self, status: str, files: Mapping[str, Path]) -> None:
        assert self.run_id is not None
        mlflow_runs.finish(self._client, self.run_id, status, files)
