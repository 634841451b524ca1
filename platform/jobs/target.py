"""Where jobs run: what every place for them can do."""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol

from vergence.platform.jobs.job import Job

JobState = Literal["pending", "running", "succeeded", "failed", "stopped"]
STOPPED_CODE = 143  # of a command that SIGTERM has ended


@dataclass(frozen=True)
class JobStatus:
    """How the newest attempt of a job stands."""

    name: str
    id: str  # of the attempt, where it runs
    verb: str
    state: JobState
    reason: str = ""  # in words: what it waits for, why it failed
    exit_code: int | None = None  # of the command, once it has ended and if it is known
    begun_s: float | None = None  # Unix time
    ended_s: float | None = None

    @property
    def is_over(self) -> bool:
        return self.state not in ("pending", "running")

    @property
    def code(self) -> int:
        """Exit code of a command that has followed the job to its end."""
        if self.exit_code is not None:
            return self.exit_code
        return {"succeeded": 0, "stopped": STOPPED_CODE}.get(self.state, 1)

    def dump(self) -> dict[str, Any]:
        return asdict(self)


class Target(Protocol):
    """A place for jobs. Everything raises UserError (no such job, refused), VergenceError (the place fails)."""

    def preview(self, job: Job) -> str:
        """What `submit` would send, as YAML; nothing is sent."""

    def submit(self, job: Job) -> JobStatus:
        """Start the job, or, if it runs, find it: the same job is never started twice.

        One that has ended is started again, and goes on with its run. UserError: the name runs with something else.
        """

    def jobs(self) -> list[JobStatus]:
        """Every job of ours that the place knows, oldest first, one attempt after the other."""

    def status(self, name: str) -> JobStatus:
        """Of a job by its name, then the newest attempt, or by the id of an attempt."""

    def logs(self, name: str, *, follow: bool, says: Callable[[str], None]) -> Iterator[str]:
        """What the job prints, in pieces, from its beginning; with `follow` to its end, through lost connections.

        says: gets remarks: what a pending job waits for, that the place does not answer.
        """

    def stop(self, name: str, *, says: Callable[[str], None]) -> JobStatus:
        """Ask the job to commit and end (SIGTERM), wait for that, and say how it stands."""
