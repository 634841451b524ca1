"""An MLflow run of ours: found by its identity, made, described and ended."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vergence.platform.masking import masked
from vergence.platform.mlflow_store import artifacts_of, tracking_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient

MAX_PARAM = 6000  # characters of a parameter's value, MLflow's own limit
RUN_TAG = "vergence.run"  # of an MLflow run: the identity of the run, or search, that it tracks


def find(client: "MlflowClient", identity: str) -> str | None:
    """The newest MLflow run with this identity, in any experiment."""
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    found = client.search_runs(experiments, f"tags.`{RUN_TAG}` = '{identity}'", max_results=1)
    return found[0].info.run_id if found else None


def create(client: "MlflowClient", experiment: str, name: str, identity: str) -> str:
    """A new one of this name, in the experiment, which is made if it is not there."""
    there = client.get_experiment_by_name(experiment)
    if there is not None:
        experiment_id = there.experiment_id
    else:
        location = artifacts_of(tracking_uri(), experiment)
        experiment_id = client.create_experiment(experiment, artifact_location=location)
    tags = {RUN_TAG: identity}  # with the run, not after it: a kill in between would hide it
    run_id: str = client.create_run(experiment_id, run_name=name, tags=tags).info.run_id
    return run_id


def describe(client: "MlflowClient", run_id: str, params: Mapping[str, Any], tags: Mapping[str, str]) -> None:
    """Parameters and tags that the MLflow run has not yet; MLflow changes no parameter."""
    from mlflow.entities import Param, RunTag

    known = client.get_run(run_id).data.params
    new = [Param(name, masked(str(value))[:MAX_PARAM]) for name, value in params.items() if name not in known]
    client.log_batch(run_id, params=new, tags=[RunTag(name, masked(value)) for name, value in tags.items()])


def finish(client: "MlflowClient", run_id: str, status: str, files: Mapping[str, Path]) -> None:
    """Log what files there are (artifact folder -> file or folder) and end the run: FINISHED, KILLED or FAILED."""
    for folder, path in files.items():
        if path.is_dir():
            client.log_artifacts(run_id, str(path), folder)
        elif path.exists():
            client.log_artifact(run_id, str(path), folder)
    client.set_terminated(run_id, status)
