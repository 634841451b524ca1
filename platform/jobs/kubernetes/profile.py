"""The cluster profile: one small YAML file that says where and how jobs run on a Kubernetes cluster."""

import json
import re
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    Field,
    NonNegativeInt,
    PositiveInt,
    StringConstraints,
    ValidationError,
    model_validator,
)

from vergence.platform import yaml
from vergence.platform.errors import UserError, nearest

Label = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")]
Quantity = Annotated[str, StringConstraints(pattern=r"^[0-9]+(\.[0-9]+)?(m|[KMGTPE]i?)?$")]
Folder = Annotated[str, StringConstraints(pattern=r"^/[^\s$`'\"\\]+[^/\s]$")]
Toleration = dict[str, Any]


class Section(BaseModel, frozen=True, extra="forbid", strict=True):
    pass


class Volume(Section):
    claim: str = Field(description="a PersistentVolumeClaim of the namespace that every pod can mount")
    path: Folder = Field(description="where pods see it")
    read_only: bool = Field(False, description="whether jobs only read it")


class Storage(Section):
    claim: str | None = Field(
        None, description="a PersistentVolumeClaim of the namespace that every pod can mount"
    )
    size: Quantity | None = Field(
        None,
        description="in the place of a claim: an emptyDir of the one pod that then has command and workers",
    )
    path: Folder = Field(description="where pods see it")

    @model_validator(mode="after")
    def _is_one(self) -> "Storage":
        if (self.claim is None) == (self.size is None):
            raise ValueError("give claim, a volume that pods share, or size, an emptyDir of one pod")
        return self


class Pods(Section):
    memory: Quantity = Field(description="of each pod, e.g. 16Gi; asked for and limited to")
    cpu: PositiveInt = Field(
        2, description="of the head, where the command itself runs; workers get the recipe's"
    )
    node_selector: dict[str, str] = Field(default={}, description="labels that a node must have")
    tolerations: tuple[Toleration, ...] = Field((), description="taints of nodes that these pods may go to")


class Gpu(Section):
    resource: str = Field("nvidia.com/gpu", description="as the nodes advertise it")
    node_selector: dict[str, str] = Field(default={}, description="labels of the nodes that have them")
    tolerations: tuple[Toleration, ...] = Field((), description="besides that of the resource itself")


class SecretKey(Section):
    secret: str = Field(description="name of a Secret of the namespace")
    key: str = Field(description="one of its keys")


class Limits(Section):
    retries: NonNegativeInt = Field(
        3, description="new clusters after failures; each goes on from the newest commit"
    )
    starting_s: PositiveInt = Field(3600, description="that an attempt may wait for nodes and images")
    deadline_s: PositiveInt | None = Field(None, description="that an attempt may take in all")
    kept_s: NonNegativeInt = Field(600, description="that the cluster of a finished job is kept")
    grace_s: PositiveInt = Field(600, description="that a run which is to stop has for its commit")


class Profile(Section):
    image: str = Field(description="with Vergence and Ray; a version or, better, a digest")
    namespace: Label
    context: str | None = Field(
        None, description="of the kubeconfig; default: in-cluster, else its current one"
    )
    ray_version: str = Field(default_factory=lambda: version("ray"), description="of the image")
    queue: str | None = Field(None, description="Kueue's LocalQueue")
    priority_class: str | None = Field(None, description="Kueue's WorkloadPriorityClass")
    service_account: str | None = Field(None, description="of all pods")
    token_secret: str | None = Field(
        None, description="with the key auth_token; default: the operator makes one"
    )
    pull_secrets: tuple[str, ...] = Field((), description="for the image's registry")
    storage: Storage = Field(
        description="the state folder (VERGENCE_HOME): runs, commits; shared by all pods"
    )
    data: tuple[Volume, ...] = Field((), description="other volumes, e.g. with shards")
    head: Pods = Pods(memory="8Gi")
    worker: Pods = Pods(memory="8Gi")
    gpu: Gpu = Gpu()
    environment: dict[str, str] = Field(default={}, description="of all pods, e.g. MLFLOW_TRACKING_URI")
    secrets: dict[str, SecretKey] = Field(default={}, description="variables whose values are in Secrets")
    scratch: Quantity = Field("20Gi", description="at /tmp of each pod")
    shm: Quantity = Field("2Gi", description="at /dev/shm of each pod, in its memory: Ray's object store")
    limits: Limits = Limits()

    @model_validator(mode="after")
    def _image_is_fixed(self) -> "Profile":
        tag = self.image.partition("@")[0].rpartition("/")[2].partition(":")[2]
        if "@sha256:" not in self.image and tag in ("", "latest"):
            raise ValueError(f"image: {self.image} is another one tomorrow; write a version or a digest")
        return self


def load_profile(path: Path) -> Profile:
    """The profile in a YAML file; UserError with each wrong setting by path."""
    raw = yaml.read(path)
    if not isinstance(raw, dict):
        raise UserError(f"{path}: a cluster profile is a mapping of settings, got {type(raw).__name__}")
    try:
        return Profile.model_validate_json(json.dumps(raw))  # strict: lists for tuples only so
    except ValidationError as error:
        raise UserError(f"{path}: {'; '.join(_explain(each) for each in error.errors())}") from None


def _explain(error: Any) -> str:
    path = ".".join(map(str, error["loc"]))
    if error["type"] == "extra_forbidden":
        model: Any = Profile
        for part in error["loc"][:-1]:
            field = getattr(model, "model_fields", {}).get(part)
            model = field.annotation if field else model
        valid = getattr(model, "model_fields", Profile.model_fields)
        return f"{path} is not a setting ({nearest(str(error['loc'][-1]), valid)})"
    if error["type"] == "missing":
        return f"{path} is missing"
    message = re.sub("^Value error, ", "", error["msg"])
    return f"{path}: {message[0].lower()}{message[1:]}" if path else message
