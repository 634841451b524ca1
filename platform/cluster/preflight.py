"""What the machines of a Ray session say before a run starts there: what they have, and what they can reach."""

import socket
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vergence.platform.cluster.capacity import places
from vergence.platform.cluster.session import Session, nodes
from vergence.platform.data.index import Index
from vergence.platform.errors import UserError
from vergence.platform.files import write_atomic
from vergence.platform.home import home
from vergence.platform.runs.run import Run
from vergence.platform.train.machine import Machine, measure, weakest
from vergence.platform.version import code_version

ANSWER_S = 60.0  # a worker process starts, and loads torch
SHARDS = 16  # that each node looks for, evenly spaced over all


class Versions(NamedTuple):
    ray: str
    torch: str
    vergence: str


class Asked(NamedTuple):
    """What a node is asked."""

    workers: int  # that find room on it
    gpus: bool
    token: Path  # a file in the run's folder ...
    text: str  # ... and what it says
    shards: Sequence[tuple[Path, int]]  # with their sizes


class Answer(NamedTuple):
    """What a node says."""

    host: str
    machine: Machine
    versions: Versions
    sees_home: bool
    missing: str | None  # a shard that is not there, or another one


def look(asked: Asked) -> Answer:
    """On a node: what it has and what it can reach."""
    try:
        sees_home = asked.token.read_text() == asked.text
    except OSError:
        sees_home = False
    missing = next((str(path) for path, size in asked.shards if _size(path) != size), None)
    return Answer(socket.gethostname(), measure(asked.workers, asked.gpus), _versions(), sees_home, missing)


def refusal(answers: Sequence[Answer], ours: Versions) -> str | None:
    """Why ranks on these nodes could not train, in one line; None if they can."""
    for answer in answers:
        for name, theirs, here in zip(Versions._fields, answer.versions, ours):
            if theirs != here:
                return (
                    f"node {answer.host} has {name} {theirs}, this command runs {here}; install the same versions of "
                    "ray, torch and vergence on all nodes"
                )
        if not answer.sees_home:
            return (
                f"node {answer.host} does not see {home()}: commits, logs and stops go through that folder; set "
                "VERGENCE_HOME to one that all nodes share"
            )
        if answer.missing is not None:
            return (
                f"node {answer.host} does not see {answer.missing} as this command does: it is not there, or of another "
                "size; put the shards where all nodes find them by the same path"
            )
    return None


def machine_of(session: Session, run: Run, index: Index) -> Callable[[], Machine]:
    """Starts to ask the nodes on which workers may run; the result waits for them: the weakest one's machine.

    A cluster that is this machine alone is measured here. The result raises UserError: see `refusal`.
    """
    scale = session.need.scale
    alive = nodes()
    gpus = bool(scale.gpus_per_worker)
    if len(alive) == 1 and _is_here(alive[0].id):
        return lambda: measure(scale.workers, gpus)
    token = home() / f".{run.name}.{run.attempt}.preflight"
    token.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(token, run.attempt)
    room = places(session.need, alive)
    asked = {
        node.id: Asked(workers, gpus, token, run.attempt, _some_shards(index))
        for node, workers in zip(alive, room)
        if workers
    }
    pending = {node: _asked_on(node, question) for node, question in asked.items()}

    def answer() -> Machine:
        try:
            answers = _answers(pending)
        finally:
            token.unlink(missing_ok=True)
        reason = refusal(answers, _versions())
        if reason is not None:
            raise UserError(reason)
        return weakest([answer.machine for answer in answers])

    return answer


def _asked_on(node: str, asked: Asked) -> Any:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    there: Any = NodeAffinitySchedulingStrategy(node, soft=False)
    task: Any = ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=there)(look)
    return task.remote(asked)


def _answers(pending: dict[str, Any]) -> list[Answer]:
    import ray

    _, silent = ray.wait([*pending.values()], num_returns=len(pending), timeout=ANSWER_S)
    if silent:
        names = [node for node, task in pending.items() if task in silent]
        raise UserError(
            f"node {names[0]} of the Ray cluster gives no answer within {ANSWER_S:g} s; is it healthy?"
        )
    answers = []
    for node, task in pending.items():
        try:
            answers.append(Answer(*ray.get(task)))
        except Exception as error:  # of Ray, with what the node could not import
            cause = getattr(error, "cause", None) or error
            raise UserError(
                f"node {node} of the Ray cluster cannot run vergence ({(str(cause).splitlines() or ['?'])[-1]}); "
                f"install vergence {version('vergence')} there"
            ) from None
    return answers


def _is_here(node: str) -> bool:
    """Whether this process is on that node; with Ray's client it is on none."""
    import ray

    return not ray.util.client.ray.is_connected() and ray.get_runtime_context().get_node_id() == node


def _some_shards(index: Index) -> list[tuple[Path, int]]:
    chosen = np.unique(np.linspace(0, len(index.shards) - 1, SHARDS).astype(int))
    return [(index.shards[i].absolute(), index.shard_sizes[i]) for i in chosen]


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None


def _versions() -> Versions:
    return Versions(_version("ray"), _version("torch"), code_version())


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
