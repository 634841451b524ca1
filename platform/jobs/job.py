"""A job: one command of Vergence that runs elsewhere, with the files that it reads."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Literal

from vergence.platform.cluster.capacity import Need

JobVerb = Literal["pretrain", "tune", "embed", "evaluate"]


@dataclass(frozen=True)
class Job:
    """What a target is given; submitting the same name again goes on with what the name stands for."""

    name: str  # of the run, the search, or what the user calls it
    verb: JobVerb
    arguments: Sequence[str]  # of the verb; a file of `files` by its bare name
    files: Mapping[str, str] = field(default_factory=dict)  # name -> text, put where the command finds them
    home: str | None = None  # VERGENCE_HOME of the job, where the user says it; absolute
    need: Need | None = None  # CPUs and GPUs of a run, or of one trial; None: one process
    concurrent: int = 1  # runs at the same time, of a search

    def command(self, folder: str = "") -> list[str]:
        """The words of the command, with its files in `folder` (default: the current one)."""
        words = [str(PurePosixPath(folder, word)) if word in self.files else word for word in self.arguments]
        return ["vergence", self.verb, *words]

    @property
    def digest(self) -> str:
        """16 hex digits of all that makes this job another one than a namesake."""
        said = [self.verb, *self.arguments, dict(self.files), self.home]
        return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:16]
