"""Jobs on a Ray cluster that runs, through the REST API of its dashboard (Ray Jobs)."""

import re
import shlex
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from vergence.platform import yaml
from vergence.platform.cluster.waiting import Waiting
from vergence.platform.errors import UserError, nearest
from vergence.platform.jobs.dashboard import Dashboard, Lost, Taken, packed
from vergence.platform.jobs.job import Job
from vergence.platform.jobs.target import JobState, JobStatus

LOOK_S = 1.0
STOP_S = 600  # from SIGTERM to SIGKILL, for the commit; Ray's own 3 s are too few
STATES: dict[str, JobState] = {
    "PENDING": "pending",
    "RUNNING": "running",
    "SUCCEEDED": "succeeded",
    "FAILED": "failed",
    "STOPPED": "stopped",
}
NO_COMMAND = 127  # of a shell that does not find it


class RayJobs:
    """The `Target` of a Ray cluster; its jobs are called NAME-ATTEMPT there."""

    def __init__(self, address: str | None = None) -> None:
        self.dashboard = Dashboard(address)

    def preview(self, job: Job) -> str:
        """The request, and the files that go along."""
        request = _request(job, 1)
        documents = [f"# POST {self.dashboard.address}/api/jobs/\n{yaml.dump(request)}"]
        return "---\n".join([*documents, *(f"# {name}\n{text}" for name, text in job.files.items())])

    def submit(self, job: Job) -> JobStatus:
        """See `Target.submit`."""
        package = packed(job.files)
        while True:
            attempts = self._attempts(job.name)
            if attempts and not _status(attempts[-1]).is_over:
                return _same(attempts[-1], job)
            attempt = 1 + max((int(each["metadata"]["attempt"]) for each in attempts), default=0)
            request = _request(job, attempt)
            if job.files:
                self.dashboard.upload(_package(request["submission_id"]), package)
            try:
                self.dashboard.post_job(request)
            except Taken:
                continue  # another submit was faster
            return self.status(request["submission_id"])

    def jobs(self) -> list[JobStatus]:
        return [_status(each) for each in self._ours()]

    def status(self, name: str) -> JobStatus:
        return _status(self._find(name))

    def logs(self, name: str, *, follow: bool, says: Callable[[str], None]) -> Iterator[str]:
        """See `Target.logs`."""
        id = self._find(name)["submission_id"]
        if follow:
            yield from self._followed(id, says)
        else:
            yield self.dashboard.log(id)

    def _followed(self, id: str, says: Callable[[str], None]) -> Iterator[str]:
        """What a job prints, once, however often the connection is lost."""
        seen, is_lost, waiting = 0, False, Waiting(says)
        while True:
            try:
                status = _status(self.dashboard.job(id))
                if is_lost:
                    says(f"{self.dashboard.address} answers again")
                is_lost = False
                if status.is_over:
                    yield self.dashboard.log(id)[seen:]
                    return
                if status.state == "pending":
                    waiting.look(partial(_pending, status))
                else:
                    for piece in self.dashboard.tail(id, seen):
                        seen += len(piece)
                        yield piece
            except Lost as error:
                if not is_lost:
                    says(f"{error}; trying again")
                is_lost = True
            time.sleep(LOOK_S)

    def stop(self, name: str, *, says: Callable[[str], None]) -> JobStatus:
        """See `Target.stop`; after `STOP_S` Ray kills what has not ended."""
        status = self.status(name)
        if status.is_over:
            return status
        self.dashboard.stop(status.id)
        waiting = Waiting(says)
        while not (status := self.status(status.id)).is_over:
            waiting.look(lambda: f"job {status.id} commits and ends")
            time.sleep(LOOK_S)
        return status

    def _ours(self) -> list[dict[str, Any]]:
        ours = [each for each in self.dashboard.jobs() if "vergence" in (each["metadata"] or {})]
        return sorted(ours, key=lambda each: (each["start_time"], each["submission_id"]))

    def _attempts(self, name: str) -> list[dict[str, Any]]:
        named = [each for each in self._ours() if each["metadata"]["vergence"] == name]
        return sorted(named, key=lambda each: int(each["metadata"]["attempt"]))

    def _find(self, name: str) -> dict[str, Any]:
        """The newest attempt of the job with this name, or the attempt with this id."""
        if attempts := self._attempts(name):
            return attempts[-1]
        ours = {each["submission_id"]: each for each in self._ours()}
        if name in ours:
            return ours[name]
        names = {each["metadata"]["vergence"] for each in ours.values()}
        raise UserError(
            f"{self.dashboard.address} knows no job {name!r} ({nearest(name, names) if names else 'it has none'})"
        )


def _package(id: str) -> str:
    """Name of an attempt's files. Ray drops a package with the last job that used it, so each has its own."""
    return f"{id}.zip"


def _request(job: Job, attempt: int) -> dict[str, Any]:
    """The body of POST /api/jobs/."""
    if not re.fullmatch(r"[A-Za-z0-9._-]+", job.name):
        raise UserError(
            f"--name {job.name!r}: a job's name has letters, digits, dots, dashes and underscores"
        )
    if job.home is None or not job.home.startswith("/"):
        raise UserError(
            f"submit: --home {job.home or 'is missing'}: where does the cluster keep runs? give an absolute path (or set "
            "VERGENCE_HOME) that all its nodes share"
        )
    id = f"{job.name}-{attempt}"
    folder = {"working_dir": f"gcs://{_package(id)}"} if job.files else {}
    environment = {"VERGENCE_HOME": job.home, "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_S)}
    return {
        "submission_id": id,
        "entrypoint": _entrypoint(job),
        "runtime_env": {"env_vars": environment, **folder},
        "metadata": {
            "vergence": job.name,
            "attempt": str(attempt),
            "verb": job.verb,
            "digest": job.digest,
        },
    }


def _entrypoint(job: Job) -> str:
    """The shell's line. Its files are read where Ray has put them; the job itself lives elsewhere, since Ray may unpack
    them anew under it (a second node on the same disk does); and without exec the shell would get its signals.
    """
    words = [f'"$files"/{word}' if word in job.files else shlex.quote(word) for word in job.command()]
    return f"files=$PWD; cd / && exec {' '.join(words)}"


def _same(running: dict[str, Any], job: Job) -> JobStatus:
    """A job that runs, if it is this one."""
    if running["metadata"]["digest"] != job.digest:
        raise UserError(
            f"{job.name} runs as {running['submission_id']} with another recipe or other arguments; wait for it, "
            f"stop it (vergence jobs stop {job.name}), or choose another --name"
        )
    return _status(running)


def _status(job: dict[str, Any]) -> JobStatus:
    metadata, state = job["metadata"], STATES[job["status"]]
    code = job.get("driver_exit_code")
    if code is not None and code < 0:  # ended by a signal
        code = 128 - code
    begun, ended = (job.get(name) and job[name] / 1000 for name in ("start_time", "end_time"))
    reason = _reason(job, code) if state in ("failed", "pending") else ""
    return JobStatus(
        metadata["vergence"], job["submission_id"], metadata["verb"], state, reason, code, begun, ended
    )


def _reason(job: dict[str, Any], code: int | None) -> str:
    """What a failed job has said at last, or what Ray says of it."""
    if code == NO_COMMAND:
        return "the cluster's head has no command vergence; start Ray there with it on the PATH"
    lines = str(job.get("message") or "").strip().splitlines() or [""]
    if code is None:
        return lines[0]
    ours = [line for line in lines if line.startswith("vergence: ")]  # Ray's own lines may come after it
    return ours[-1].removeprefix("vergence: ") if ours else f"exit code {code}"


def _pending(status: JobStatus) -> str:
    return f"job {status.id} is pending: {status.reason}"
