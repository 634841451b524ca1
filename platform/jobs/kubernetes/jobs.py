"""Jobs on a Kubernetes cluster with KubeRay: a RayJob each, of the job's name."""

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from vergence.platform.cluster.waiting import Waiting
from vergence.platform.errors import UserError, VergenceError, nearest
from vergence.platform.jobs.check.check import faults_of
from vergence.platform.jobs.check.finding import Document
from vergence.platform.jobs.job import Job
from vergence.platform.jobs.kubernetes import render
from vergence.platform.jobs.kubernetes.api import Api, Lost, Missing, Taken, patient
from vergence.platform.jobs.kubernetes.profile import Profile
from vergence.platform.jobs.kubernetes.state import status, waits_for
from vergence.platform.jobs.target import JobStatus

LOG_POD = "ray.io/originated-from-cr-name"  # label of the pod that hands the command over and prints its log
PATIENCE_S = 600.0
LOOK_S = 1.0
MARGIN_S = 120  # between our clock and the cluster's

Says = Callable[[str], None]


class KubernetesJobs:
    """The `Target` of a cluster; see kubernetes' part of docs/kubernetes.md for how a job is followed."""

    def __init__(self, profile: Profile, *, patience_s: float = PATIENCE_S, look_s: float = LOOK_S) -> None:
        """patience_s: for a server that does not answer; look_s: between two looks."""
        self.profile, self.patience_s, self.look_s = profile, patience_s, look_s
        self._api: Api | None = None

    @property
    def api(self) -> Api:
        """Connected when first used: a preview needs no cluster."""
        if self._api is None:
            self._api = Api(self.profile.namespace, self.profile.context)
        return self._api

    def preview(self, job: Job) -> str:
        """The manifest."""
        return render.text(self._checked(job))

    def submit(self, job: Job) -> JobStatus:
        """See `Target.submit`. A RayJob that has ended is deleted and made anew; the run goes on from its commit."""
        manifest = self._checked(job)
        while True:
            try:
                return status(self.api.create(manifest))
            except Taken:
                pass
            try:
                there = self.api.get(job.name)
            except Missing:
                continue  # deleted just now
            self._refuse_other(there, manifest)
            found = status(there)
            if "deletionTimestamp" not in there["metadata"]:
                if not found.is_over:
                    return found
                self.api.delete(job.name, there["metadata"]["uid"])
            self._wait_until_gone(there, _ignore)

    def jobs(self) -> list[JobStatus]:
        found = self.api.rayjobs(render.NAME)
        return [
            status(each) for each in sorted(found, key=lambda each: each["metadata"]["creationTimestamp"])
        ]

    def status(self, name: str) -> JobStatus:
        rayjob = self._find(name)
        return status(rayjob, "" if status(rayjob).state != "pending" else self._reason(rayjob))

    def logs(self, name: str, *, follow: bool, says: Says) -> Iterator[str]:
        """See `Target.logs`."""
        rayjob = patient(lambda: self._find(name), self.patience_s, says, self.look_s)
        log = _Log(self.api, f"{LOG_POD}={rayjob['metadata']['name']}")
        if not follow:
            yield from log.new(follow=False)
            return
        waiting, begun_s = Waiting(says), time.monotonic()
        while True:
            over = status(rayjob).is_over  # known before the log is read: nothing comes after it
            printed = False
            try:
                for line in log.new(follow=not over):
                    printed = True
                    yield line
            except (
                Lost,
                Missing,
            ):  # how the job stands is asked for next, with patience; the log comes after it
                pass
            if over:
                return
            waiting.look(partial(self._waits, rayjob))
            rayjob = self._next(rayjob, says, at_once=printed)
            self._check_clock(rayjob, time.monotonic() - begun_s)

    def stop(self, name: str, *, says: Says) -> JobStatus:
        """See `Target.stop`. The RayJob is deleted: its pods have `limits.grace_s` for the commit."""
        rayjob = self._find(name)
        found = status(rayjob)
        if found.is_over:
            return found
        self.api.delete(rayjob["metadata"]["name"], rayjob["metadata"]["uid"])
        self._wait_until_gone(rayjob, says)
        return JobStatus(
            found.name, found.id, found.verb, "stopped", begun_s=found.begun_s, ended_s=time.time()
        )

    def _checked(self, job: Job) -> dict[str, Any]:
        """The manifest of a job; UserError for what the operator would refuse after the server has taken it."""
        manifest = render.rayjob(job, self.profile)
        faults = list(faults_of(Document("the RayJob", manifest)))
        if faults:
            raise UserError("; ".join(map(str, faults)))
        return manifest

    def _refuse_other(self, there: dict[str, Any], manifest: dict[str, Any]) -> None:
        """UserError if a live RayJob of this name is another job, or none of ours."""
        name, labels = there["metadata"]["name"], there["metadata"].get("labels") or {}
        if render.NAME not in labels:
            raise UserError(f"{name}: is a RayJob that Vergence has not made; choose another --name")
        same = labels.get(render.SPEC) == manifest["metadata"]["labels"][render.SPEC]
        if not same and not status(there).is_over and "deletionTimestamp" not in there["metadata"]:
            paths = ", ".join(differences(manifest["spec"], there["spec"], "spec")[:3])
            raise UserError(
                f"{name}: runs with another specification ({paths or 'its labels differ'}); wait for it, stop it (vergence "
                f"jobs stop {name} --to k8s), or choose another --name"
            )

    def _find(self, name: str) -> dict[str, Any]:
        try:
            return self.api.get(name)
        except Missing:
            names = [each["metadata"]["name"] for each in self.api.rayjobs(render.NAME)]
            known = nearest(name, names) if names else "it has none"
            raise UserError(f"{self.api.where}: has no job {name!r} ({known})") from None

    def _next(self, rayjob: dict[str, Any], says: Says, *, at_once: bool) -> dict[str, Any]:
        """The RayJob now, or after something has happened to it, or a while. Raises VergenceError: it is gone."""
        name, uid = rayjob["metadata"]["name"], rayjob["metadata"]["uid"]

        def now() -> dict[str, Any]:
            if not at_once:
                self.api.wait(rayjob)
            time.sleep(self.look_s)
            return self.api.get(name)

        try:
            found: dict[str, Any] = patient(now, self.patience_s, says, self.look_s)
        except Missing:
            found = {"metadata": {"uid": None}}
        if found["metadata"]["uid"] != uid:
            raise VergenceError(
                f"{name}: was deleted while it was followed, how it ended is not known; the same submit goes on with its run"
            )
        return found

    def _waits(self, rayjob: dict[str, Any]) -> str | None:
        found = status(rayjob)
        return f"job {found.id} is pending: {self._reason(rayjob)}" if found.state == "pending" else None

    def _reason(self, rayjob: dict[str, Any]) -> str:
        """What a pending job waits for, as far as we may see."""
        mine = (rayjob["metadata"]["name"], (rayjob.get("status") or {}).get("rayClusterName"))
        events = [each for each in self.api.events() if _is_about(each, mine)]
        return waits_for(rayjob, self.api.workloads(), events)

    def _check_clock(self, rayjob: dict[str, Any], followed_s: float) -> None:
        """VergenceError if all attempts together have had their time: an operator that is down ends nothing."""
        limits = self.profile.limits
        if limits.deadline_s is None:
            return
        most_s = (limits.retries + 1) * (limits.deadline_s + limits.starting_s)
        if followed_s > most_s:
            raise VergenceError(
                f"{rayjob['metadata']['name']}: no end after {most_s} s; does the operator run?"
            )

    def _wait_until_gone(self, rayjob: dict[str, Any], says: Says) -> None:
        """Until the object and its pods are gone: their runs hold a lock. Raises VergenceError: they stay."""
        name, uid, waiting = rayjob["metadata"]["name"], rayjob["metadata"]["uid"], Waiting(says)
        deadline_s = time.monotonic() + self.profile.limits.grace_s + 60
        while time.monotonic() < deadline_s:
            try:
                gone = (
                    patient(lambda: self.api.get(name), self.patience_s, says, self.look_s)["metadata"]["uid"]
                    != uid
                )
            except Missing:
                gone = True
            if gone and not self.api.pods(f"{render.NAME}={name},{LOG_POD}!={name}"):
                return
            waiting.look(lambda: f"job {name} commits and ends")
            time.sleep(self.look_s)
        raise VergenceError(
            f"{name}: is still there after {self.profile.limits.grace_s + 60} s of grace; does KubeRay run?"
        )


class _Log:
    """What the pods that print a job's log have printed, each line once, however often a connection is lost."""

    def __init__(self, api: Api, label: str) -> None:
        self.api, self.label = api, label
        self.last: dict[
            str, tuple[str, float]
        ] = {}  # pod -> moment of its last line, as the server writes it; our clock
        self.ended: set[str] = set()

    def new(self, *, follow: bool) -> Iterator[str]:
        """Lines that were not given out before, a failed pod's before those of the one that took its place."""
        for pod in self.api.pods(self.label):
            name, phase = pod["metadata"]["name"], pod["status"].get("phase")
            if phase == "Pending" or name in self.ended:
                continue
            yield from self._lines(name, follow and phase == "Running")
            if phase != "Running":
                self.ended.add(name)

    def _lines(self, pod: str, follow: bool) -> Iterator[str]:
        last, seen_s = self.last.get(pod, ("", 0.0))
        since_s = int(time.monotonic() - seen_s) + MARGIN_S if last else None
        for line in self.api.log(pod, follow=follow, since_s=since_s):
            moment, _, said = line.partition(" ")  # RFC 3339 of fixed width: later is greater
            if moment > last:
                last = moment
                self.last[pod] = (moment, time.monotonic())
                yield f"{said}\n"


def differences(wanted: Any, there: Any, path: str) -> list[str]:
    """Paths at which an object of the server is not what we would write; what it has besides does not count."""
    if isinstance(wanted, dict) and isinstance(there, dict):
        return [
            found for key in wanted for found in differences(wanted[key], there.get(key), f"{path}.{key}")
        ]
    if isinstance(wanted, list) and isinstance(there, list) and len(wanted) == len(there):
        pairs = enumerate(zip(wanted, there))
        return [found for i, (one, other) in pairs for found in differences(one, other, f"{path}[{i}]")]
    return [] if wanted == there else [path]


def _is_about(event: dict[str, Any], names: tuple[str | None, ...]) -> bool:
    """Whether an event is of an object with one of these names, or of a pod of such a cluster."""
    about = str((event.get("involvedObject") or {}).get("name"))
    return any(name and (about == name or about.startswith(f"{name}-")) for name in names)


def _ignore(line: str) -> None:
    pass
