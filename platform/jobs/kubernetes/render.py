"""The RayJob of a job: one object that carries its command, its files and its cluster.

Files travel as annotations of the head's pod and are mounted by the downward API, so that there is one thing to create, to
compare and to delete.
"""

import hashlib
import json
import math
import re
import shlex
from pathlib import PurePosixPath
from typing import Any

import yaml

from vergence.platform.cluster.capacity import Need
from vergence.platform.cluster.session import MALLOC
from vergence.platform.errors import UserError
from vergence.platform.jobs.check.kueue import PRIORITY, QUEUE
from vergence.platform.jobs.check.pods import quantity
from vergence.platform.jobs.check.rayjob import DNS_1035, LONGEST, shell_words
from vergence.platform.jobs.job import Job
from vergence.platform.jobs.kubernetes.profile import Pods, Profile, Volume

FILES = "/etc/vergence"  # where a job finds its files
COMMAND = "command.sh"  # a file that holds a command with words that a shell would act on
MOST_BYTES = 200 << 10  # of files: the annotations of an object may have 256 KiB
NAME, VERB, SPEC = (
    "vergence/name",
    "vergence/verb",
    "vergence/spec",
)  # labels: of the run, and the hash of it all
DASHBOARD = 8265
CONTAINER = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}
POD = {
    "runAsNonRoot": True,
    "runAsUser": 1000,
    "runAsGroup": 1000,
    "fsGroup": 1000,
    "fsGroupChangePolicy": "OnRootMismatch",
    "seccompProfile": {"type": "RuntimeDefault"},
}


def rayjob(job: Job, profile: Profile) -> dict[str, Any]:
    """The manifest; equal jobs have equal ones. Raises UserError: what a RayJob cannot hold."""
    _check_name(job.name)
    _check_state(job, profile)
    entrypoint, files = _command(job)
    limits = profile.limits
    labels = {NAME: job.name, VERB: job.verb, "app.kubernetes.io/part-of": "vergence"}
    if profile.queue is not None:
        labels[QUEUE] = profile.queue
    if profile.priority_class is not None:
        labels[PRIORITY] = profile.priority_class
    spec: dict[str, Any] = {
        "entrypoint": entrypoint,
        "submissionMode": "K8sJobMode",  # its pod has the log, and stays when the cluster is gone
        "jobId": job.name,  # each attempt has a cluster of its own
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": limits.kept_s,
        "backoffLimit": limits.retries,
        "preRunningDeadlineSeconds": limits.starting_s,
        "submitterPodTemplate": _submitter(job, profile),
        "rayClusterSpec": {
            "rayVersion": profile.ray_version,
            "authOptions": {
                "mode": "token",
                **({"secretName": profile.token_secret} if profile.token_secret else {}),
            },
            "headGroupSpec": _head(job, files, profile),
            "workerGroupSpecs": _workers(job, profile),
        },
    }
    if limits.deadline_s is not None:
        spec["activeDeadlineSeconds"] = limits.deadline_s
    manifest = {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": {"name": job.name, "namespace": profile.namespace, "labels": labels},
        "spec": spec,
    }
    said = json.dumps(manifest, sort_keys=True)
    labels[SPEC] = hashlib.sha256(said.encode()).hexdigest()[:16]
    return manifest


class _Dumper(yaml.SafeDumper):
    """As kubectl reads it: YAML 1.1's words are quoted, texts of several lines stay lines, nothing is an alias."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _lines(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _lines)


def text(manifest: dict[str, Any]) -> str:
    """The manifest as YAML, for `kubectl apply -f -`."""
    written: str = yaml.dump(manifest, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1000)
    return written


def _check_name(name: str) -> None:
    longest = LONGEST["RayJob"]
    if not DNS_1035.fullmatch(name) or len(name) > longest:
        nearest = re.sub("^[^a-z]+|[^a-z0-9]+$", "", re.sub("[^a-z0-9]+", "-", name.lower())[:longest])
        raise UserError(
            f"--name {name!r}: on Kubernetes a name has small letters, digits and -, a letter first, at most {longest} "
            f"characters{f'; nearest: {nearest}' if nearest else ''}"
        )


def _check_state(job: Job, profile: Profile) -> None:
    """What outlives its pod only in a mirror needs one."""
    if profile.storage.size is None:
        return
    if job.verb == "tune":
        raise UserError(
            "submit tune: a search has no mirror, and storage.size of the profile goes with its pod; give storage.claim"
        )
    if job.verb == "pretrain" and not (yaml.safe_load(job.files["recipe.yaml"]).get("commit") or {}).get(
        "mirror"
    ):
        raise UserError(
            "submit pretrain: storage.size of the profile goes with its pod; give commit.mirror=s3://BUCKET/runs, from "
            "where the next pod goes on"
        )


def _command(job: Job) -> tuple[str, dict[str, str]]:
    """The entrypoint, which a shell of the submitter reads first, and the files of the job."""
    words = job.command(FILES)
    files = dict(job.files)
    if any(shell_words(word) or re.search(r"\s", word) or not word for word in words):
        files[COMMAND] = f"exec {shlex.join(words)}\n"
        words = ["sh", str(PurePosixPath(FILES, COMMAND))]
    if (size := sum(len(text.encode()) for text in files.values())) > MOST_BYTES:
        raise UserError(
            f"submit: the job's files have {size:,} bytes, a RayJob holds {MOST_BYTES:,}; put large ones on the volume"
        )
    return " ".join(words), files


def _head(job: Job, files: dict[str, str], profile: Profile) -> dict[str, Any]:
    """Drivers run there, those of a search's trials too; tasks and actors only where there is no other pod."""
    address = f"http://127.0.0.1:{DASHBOARD}"
    stop = [
        "ray",
        "job",
        "stop",
        "--address",
        address,
        job.name,
    ]  # waits until the run has committed and ended
    pods, cpus, gpus, for_ray = _room(job, profile)
    template = _template(job, profile, pods, cpus, gpus, stop)
    if files:
        template["metadata"]["annotations"] |= {f"vergence/{name}": text for name, text in files.items()}
        items = [
            {"path": name, "fieldRef": {"fieldPath": f"metadata.annotations['vergence/{name}']"}}
            for name in files
        ]
        template["spec"]["volumes"].append({"name": "files", "downwardAPI": {"items": items}})
        mounts = template["spec"]["containers"][0]["volumeMounts"]
        mounts.append({"name": "files", "mountPath": FILES, "readOnly": True})
    return {"rayStartParams": {"num-cpus": str(for_ray), **_store(profile)}, "template": template}


def _room(job: Job, profile: Profile) -> tuple[Pods, int, int, int]:
    """Of the head: its kind, CPUs, GPUs, and how many of the CPUs are Ray's to give.

    Where the state folder is in one pod, that is the workers' too.
    """
    own = profile.head.cpu
    if profile.storage.size is None or job.need is None:
        return profile.head, own, 0, 1 if job.verb == "tune" else 0
    workers, for_ray = job.need.scale.workers, job.need.scale.workers * pod_cpus(job.need)
    memory = (quantity(profile.head.memory) or 0) + workers * (quantity(profile.worker.memory) or 0)
    pods = profile.worker.model_copy(update={"memory": f"{memory:.0f}"})
    return pods, own + for_ray, workers * job.need.scale.gpus_per_worker, for_ray


def _workers(job: Job, profile: Profile) -> list[dict[str, Any]]:
    """A pod for each worker of a run, with its readers; for all runs that a search has at a time."""
    if job.need is None or profile.storage.size is not None:
        return []
    cpus, gpus = pod_cpus(job.need), job.need.scale.gpus_per_worker
    count = job.need.scale.workers * job.concurrent
    # the head ends the run on its own; workers stay until it has committed
    wait = f'ray job logs --follow --address "http://$FQ_RAY_IP:{DASHBOARD}" {job.name} >/dev/null'
    template = _template(job, profile, profile.worker, cpus, gpus, ["sh", "-c", wait])
    counts = dict.fromkeys(("replicas", "minReplicas", "maxReplicas"), count)
    return [{"groupName": "workers", **counts, "rayStartParams": _store(profile), "template": template}]


def pod_cpus(need: Need) -> int:
    """CPUs of a worker's pod: its own and those of its readers."""
    readers = need.num_readers / need.scale.workers * need.reader_cpus
    return math.ceil(need.scale.cpus_per_worker + readers - 1e-9)


def _store(profile: Profile) -> dict[str, str]:
    """Ray's object store fills nine tenths of /dev/shm."""
    return {"object-store-memory": str(int(0.9 * (quantity(profile.shm) or 0)))}


def _template(
    job: Job, profile: Profile, pods: Pods, cpus: int, gpus: int, before_stop: list[str]
) -> dict[str, Any]:
    """The pod template of head or workers. before_stop: the command that a pod runs before it ends."""
    volumes = [
        {"name": "tmp", "emptyDir": {"sizeLimit": profile.scratch}},
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": profile.shm}},
    ]
    mounts: list[dict[str, Any]] = [
        {"name": "tmp", "mountPath": "/tmp"},
        {"name": "shm", "mountPath": "/dev/shm"},
    ]
    if profile.storage.size is not None:
        volumes.append({"name": "state", "emptyDir": {"sizeLimit": profile.storage.size}})
        mounts.append({"name": "state", "mountPath": profile.storage.path})
    for i, volume in enumerate(_claims(profile)):
        claim = {"claimName": volume.claim, **({"readOnly": True} if volume.read_only else {})}
        volumes.append({"name": f"claim-{i}", "persistentVolumeClaim": claim})
        read_only = {"readOnly": True} if volume.read_only else {}
        mounts.append({"name": f"claim-{i}", "mountPath": volume.path, **read_only})
    resources = {"cpu": str(cpus), "memory": pods.memory}
    limits: dict[str, Any] = {**resources, **({profile.gpu.resource: gpus} if gpus else {})}
    container = {
        "name": "ray",
        "image": profile.image,
        "env": _environment(job, profile),
        "resources": {"requests": resources, "limits": limits},
        "securityContext": CONTAINER,
        "volumeMounts": mounts,
        "lifecycle": {"preStop": {"exec": {"command": before_stop}}},
    }
    spec = _pod(profile, container, volumes)
    spec["terminationGracePeriodSeconds"] = profile.limits.grace_s
    if selector := {**pods.node_selector, **(profile.gpu.node_selector if gpus else {})}:
        spec["nodeSelector"] = selector
    tolerations = [*pods.tolerations]
    if gpus:
        own = {"key": profile.gpu.resource, "operator": "Exists", "effect": "NoSchedule"}
        tolerations += [own, *profile.gpu.tolerations]
    if tolerations:
        spec["tolerations"] = tolerations
    annotations = {"cluster-autoscaler.kubernetes.io/safe-to-evict": "false"}
    return {"metadata": {"labels": _labels(job), "annotations": annotations}, "spec": spec}


def _claims(profile: Profile) -> list[Volume]:
    """Volumes that pods share."""
    state = profile.storage
    return [*([Volume(claim=state.claim, path=state.path)] if state.claim else []), *profile.data]


def _submitter(job: Job, profile: Profile) -> dict[str, Any]:
    """The pod that hands the command to Ray and prints what it says."""
    container = {
        "name": "ray-job-submitter",
        "image": profile.image,
        "env": [{"name": "HOME", "value": "/tmp"}],
        "resources": {
            "requests": {"cpu": "500m", "memory": "512Mi"},
            "limits": {"cpu": "1", "memory": "1Gi"},
        },
        "securityContext": CONTAINER,
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
    }
    spec = _pod(profile, container, [{"name": "tmp", "emptyDir": {"sizeLimit": "1Gi"}}])
    return {"metadata": {"labels": _labels(job)}, "spec": {**spec, "restartPolicy": "Never"}}


def _labels(job: Job) -> dict[str, str]:
    """By which network policies and `vergence jobs` know the pods."""
    return {
        NAME: job.name,
        "app.kubernetes.io/part-of": "vergence",
        "app.kubernetes.io/component": "training",
    }


def _pod(profile: Profile, container: dict[str, Any], volumes: list[dict[str, Any]]) -> dict[str, Any]:
    """What all pods have: nobody's rights but their own."""
    spec: dict[str, Any] = {"automountServiceAccountToken": False, "securityContext": POD}
    if profile.service_account is not None:
        spec["serviceAccountName"] = profile.service_account
    if profile.pull_secrets:
        spec["imagePullSecrets"] = [{"name": name} for name in profile.pull_secrets]
    return {**spec, "containers": [container], "volumes": volumes}


def _environment(job: Job, profile: Profile) -> list[dict[str, Any]]:
    values = {
        "HOME": "/tmp",  # the root file system is read-only
        "XDG_CACHE_HOME": "/tmp/cache",
        "VERGENCE_HOME": _home(job, profile),
        "RAY_JOB_STOP_WAIT_TIME_S": str(profile.limits.grace_s),  # Ray's own 3 s are too few for a commit
        "RAY_USAGE_STATS_ENABLED": "0",
        "GLIBC_TUNABLES": MALLOC,
        **profile.environment,
    }
    plain = [{"name": name, "value": value} for name, value in values.items()]
    hidden = [
        {"name": name, "valueFrom": {"secretKeyRef": {"name": each.secret, "key": each.key}}}
        for name, each in profile.secrets.items()
    ]
    return plain + hidden


def _home(job: Job, profile: Profile) -> str:
    root = PurePosixPath(profile.storage.path)
    home = PurePosixPath(job.home or root)
    if not home.is_relative_to(root):
        raise UserError(f"--home {home}: is not on the shared volume, which pods see at {root}")
    return str(home)
