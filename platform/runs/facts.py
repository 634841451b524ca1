"""What a run remembers from one attempt to the next, in run.json."""

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field, ValidationError

from vergence.platform.files import read_mapping
from vergence.platform.runs.commit import Commit
from vergence.platform.schema import SCHEMA


class RunFacts(BaseModel, frozen=True, extra="ignore", populate_by_name=True):
    """None where a run does not know it (yet)."""

    schema_version: int = Field(1, alias="schema")
    id: str | None = None  # the run's identity: its MLflow run carries it
    data_digest: str | None = None
    labelled: bool | None = None  # whether the training data have classes
    precision: Literal["fp32", "bf16"] | None = None
    regime: Literal["one", "kept", "two-pass"] | None = None
    micro: int | None = None
    span: int | None = None
    mlflow_run: str | None = None
    mlflow_position: float = -1.0  # of the last record that MLflow has
    version: int | None = None  # in the registry
    tracked: bool = False  # all records have arrived
    finished: bool = False  # trained, exported, and registered if that was asked for

    def dump(self) -> dict[str, Any]:
        """What is known, as plain values for JSON."""
        return {"schema": SCHEMA, **self.model_dump(exclude_unset=True, exclude={"schema_version"})}

    def but(self, **facts: Any) -> "RunFacts":
        """With some facts more, or others."""
        assert facts.keys() <= RunFacts.model_fields.keys(), facts.keys()
        return RunFacts.model_validate({**self.dump(), **facts})


def read_facts(run: Path, newest: Commit | None) -> RunFacts:
    """The facts in a run's folder; without a whole run.json what its newest commit knew, the rest is asked anew."""
    kept = read_mapping(run / "run.json")
    if kept is None and newest is not None:
        kept = newest.manifest.get("run")
    try:
        return RunFacts.model_validate(kept or {})
    except ValidationError:  # of a version whose facts mean something else: its commits say so, too
        return RunFacts()
