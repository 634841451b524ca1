"""Where runs and caches live."""

import os
from pathlib import Path


def home() -> Path:
    """The state folder: VERGENCE_HOME, default ./runs; absolute."""
    return Path(os.environ.get("VERGENCE_HOME") or "runs").absolute()


def tracking_uri() -> str:
    """MLflow's tracking and registry store: MLFLOW_TRACKING_URI, else a database in the state folder."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{home() / 'mlflow.db'}"
