"""Where runs and caches live."""

import os
from pathlib import Path


def home() -> Path:
    """The state folder: VERGENCE_HOME, default ./runs; absolute."""
    return Path(os.environ.get("VERGENCE_HOME") or "runs").absolute()
