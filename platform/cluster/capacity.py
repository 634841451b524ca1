"""What a run needs of a machine or cluster, and whether that fits."""

import os
from collections.abc import Callable, Sequence
from typing import Annotated, Literal, NamedTuple

from pydantic import BaseModel, Field, NonNegativeInt, PositiveInt

from vergence.platform.errors import UserError

MOST_ON_CPUS = 8  # workers that `auto` takes of a machine without GPUs: each is a process with torch
DRIVER_CPUS = 0.01  # of each trial of a search
LOWER = "scale.workers, scale.cpus_per_worker or data.reader_cpus"  # what a run may ask less of


class ScaleConfig(BaseModel, frozen=True, extra="forbid", strict=True):
    """See AskedScale; nothing is left open here."""

    workers: PositiveInt = 1
    cpus_per_worker: PositiveInt = 1
    gpus_per_worker: int = Field(0, ge=0, le=1)
    zero: int = Field(0, ge=0, le=3)
    max_failures: NonNegativeInt = 3


class Node(NamedTuple):
    """Logical CPUs and GPUs of one machine: all of them, or those that are free."""

    cpus: float
    gpus: float = 0.0
    id: str = ""  # Ray's


class Found(NamedTuple):
    """What there is to train on."""

    cpus: int
    gpus: int  # that torch can use
    unusable_gpus: int = 0  # that the driver has and this build of torch cannot use
    nodes: tuple[Node, ...] = ()  # of a cluster, whose CPUs are not declared anew

    def shared(self, trials: int) -> "Found":
        """What one of so many runs may take; with GPUs at least one, whether or not there are as many."""
        return self._replace(
            cpus=max(1, self.cpus // trials), gpus=max(min(1, self.gpus), self.gpus // trials)
        )


class AskedScale(BaseModel, frozen=True, extra="forbid", strict=True):
    """The recipe's `scale` section."""

    workers: PositiveInt | Literal["auto"] = Field(
        1,
        description="Ray Train workers (ranks); auto: one for each GPU, without GPUs one for each of up to "
        f"{MOST_ON_CPUS} CPUs, as far as the batch divides",
    )
    cpus_per_worker: PositiveInt = Field(1, description="CPUs, and torch threads, of each worker")
    gpus_per_worker: Annotated[int, Field(ge=0, le=1)] | Literal["auto"] = Field(
        0, description="GPUs of each worker; auto: 1 where there is one for each"
    )
    zero: int = Field(0, ge=0, le=3, description="DeepSpeed ZeRO stage: 0, 1 or 2")
    max_failures: NonNegativeInt = Field(3, description="restarts of the worker group before the run fails")

    @property
    def is_open(self) -> bool:
        return "auto" in (self.workers, self.gpus_per_worker)

    def settled(self) -> ScaleConfig:
        """UserError: something is left to the machine that trains, which is not asked here."""
        if self.is_open:
            raise UserError(
                "scale.workers and scale.gpus_per_worker: auto is what is found where the run starts, which is not here; "
                "give numbers, such as scale.workers=1 scale.gpus_per_worker=0"
            )
        return ScaleConfig.model_validate(self.model_dump())


def settle(asked: AskedScale, found: Found, divides: Callable[[int], bool]) -> AskedScale:
    """With a number in place of every `auto`.

    divides: whether so many workers can share the batch.
    """
    workers, gpus = asked.workers, asked.gpus_per_worker
    if gpus == "auto":
        gpus = int(found.gpus >= (1 if workers == "auto" else workers))
    if workers == "auto":
        most = found.gpus if gpus else min(MOST_ON_CPUS, found.cpus // asked.cpus_per_worker)
        workers = max((n for n in range(1, most + 1) if divides(n)), default=1)
    return asked.model_copy(update={"workers": workers, "gpus_per_worker": gpus})


def found_here() -> Found:
    """This machine."""
    import torch

    from vergence.platform.train.machine import num_cards

    gpus = torch.cuda.device_count()
    return Found(physical_cpus(), gpus, 0 if gpus else num_cards())


class Need(NamedTuple):
    """Logical CPUs and GPUs of a run, or of the trials of a search that train at the same time."""

    scale: ScaleConfig
    readers: int
    reader_cpus: float
    trials: int = 0  # 0: one run, whose driver is the command itself

    @property
    def num_workers(self) -> int:
        return self.scale.workers * max(1, self.trials)

    @property
    def num_readers(self) -> int:
        """Reader tasks that run at the same time: as many for each rank, and at least one."""
        return self.num_workers * max(1, self.readers // self.scale.workers)

    @property
    def cpus(self) -> float:
        """With trials one more than they use: their drivers' fractions would take the last whole CPU of a worker."""
        used = self.num_workers * self.scale.cpus_per_worker + self.num_readers * self.reader_cpus
        return used + self.trials * DRIVER_CPUS + 1 if self.trials else used

    @property
    def gpus(self) -> int:
        return self.num_workers * self.scale.gpus_per_worker

    def arithmetic(self) -> str:
        workers = f"{self.num_workers} workers x {self.scale.cpus_per_worker} CPUs"
        readers = f"{self.num_readers} readers x {self.reader_cpus:g} CPUs"
        drivers = f" + {self.trials} trials x {DRIVER_CPUS:g} + 1" if self.trials else ""
        return f"{workers} + {readers}{drivers} = {self.cpus:g} CPUs"


def fits(need: Need, nodes: Sequence[Node]) -> str | None:
    """What `need` lacks on `nodes`, with the arithmetic; None if it fits.

    A worker, and a reader, must find all its CPUs and GPUs on one node.
    """
    scale, cpus, gpus = need.scale, sum(node.cpus for node in nodes), sum(node.gpus for node in nodes)
    largest = max((node.cpus for node in nodes), default=0.0)
    if need.gpus > gpus:
        return f"{need.gpus} GPUs needed, got {gpus:g}"
    if need.cpus > cpus:
        return f"{need.arithmetic()}, got {cpus:g}"
    for what, each in ("worker", float(scale.cpus_per_worker)), ("reader", need.reader_cpus):
        if each > largest:
            return f"a {what} needs {each:g} CPUs on one node, got at most {largest:g}"
    room = places(need, nodes)
    if sum(room) < need.num_workers:
        gpu = f" and {scale.gpus_per_worker} GPU" if scale.gpus_per_worker else ""
        each_node = ", ".join(f"{node.cpus:g}" for node in nodes)
        return (
            f"{need.num_workers} workers of {scale.cpus_per_worker} CPUs{gpu} on one node each, "
            f"got room for {sum(room)} on nodes of {each_node} CPUs"
        )
    left = _left(need, nodes, room)
    if sum(int(cpus / need.reader_cpus + 1e-9) for cpus in left) < need.num_readers:
        each_node = ", ".join(f"{cpus:g}" for cpus in left)
        return (
            f"{need.num_readers} readers of {need.reader_cpus:g} CPUs beside the workers, "
            f"got nodes with {each_node} CPUs left"
        )
    return None


def places(need: Need, nodes: Sequence[Node]) -> list[int]:
    """Workers that find room on each node, whatever the others hold."""
    cpus = need.scale.cpus_per_worker
    return [min(need.num_workers, int(node.cpus / cpus), _gpu_places(need, node)) for node in nodes]


def _gpu_places(need: Need, node: Node) -> int:
    gpus = need.scale.gpus_per_worker
    return int(node.gpus / gpus) if gpus else need.num_workers


def _left(need: Need, nodes: Sequence[Node], room: Sequence[int]) -> list[float]:
    """CPUs that are left on each node when the workers fill one node after the other."""
    left, workers = [], need.num_workers
    for node, places in zip(nodes, room):
        placed = min(places, workers)
        workers -= placed
        left.append(node.cpus - placed * need.scale.cpus_per_worker)
    return left


def physical_cpus() -> int:
    """CPUs this process may use."""
    return len(os.sched_getaffinity(0))


def check_local(need: Need, lower: str = LOWER) -> None:
    """UserError if a session of our own would have to over-declare this machine too far.

    lower: the settings that would help.
    """
    limit = max(8, 4 * physical_cpus())
    if need.cpus > limit:
        fewer = "search.budget.concurrent, " if need.trials > 1 else ""
        raise UserError(
            f"scale: {need.arithmetic()}, but this machine has {physical_cpus()} and a local run may declare "
            f"at most {limit}; lower {fewer}{lower}, or set RAY_ADDRESS"
        )
    if need.gpus:
        import torch

        if need.gpus > torch.cuda.device_count():
            raise UserError(
                f"scale: {need.num_workers} workers x {need.scale.gpus_per_worker} GPUs = {need.gpus} GPUs, "
                f"but this machine has {torch.cuda.device_count()}; set scale.gpus_per_worker=0 to train on CPUs"
            )
