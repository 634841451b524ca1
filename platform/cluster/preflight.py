"""What the machines of a Ray session say before a run starts there: what they have, and what they can reach."""

import os
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vergence.platform.cluster.capacity import places
from vergence.platform.cluster.session import Session, nodes
from vergence.platform.data.index import Index
from vergence.platform.errors import UserError, VergenceError
from vergence.platform.files import write_atomic
from vergence.platform.home import home
from vergence.platform.runs.run import Run
from vergence.platform.store import is_url, store_of
from vergence.platform.train.machine import Machine, measure, weakest
from vergence.platform.version import code_version

ANSWER_S = 60.0  # a worker process starts, and loads torch
REACH_S = 20.0  # in which a node has reached a store
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
    shards: Sequence[tuple[str, int]]  # with their sizes


class Answer(NamedTuple):
    """What a node says."""

    host: str
    machine: Machine
    versions: Versions
    sees_home: bool
    missing: str | None  # a shard that is not there, or another one


def look(question: Asked) -> Answer:
    """On a node: what it has and what it can reach."""
    try:
        sees_home = question.token.read_text() == question.text
    except OSError:
        sees_home = False
    missing = next((shard for shard, size in question.shards if _size(shard) != size), None)
    return Answer(
        socket.gethostname(), measure(question.workers, question.gpus), _versions(), sees_home, missing
    )


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
                "size; put the shards where all nodes find them by the same path, and give all the same credentials"
            )
    return None


@contextmanager
def asked(session: Session, run: Run, index: Index) -> Iterator[Callable[[], Machine]]:
    """Asks the nodes that may get workers; the callable waits for their answers: the machine of the weakest.

    A cluster that is this machine alone is measured here. The callable raises UserError: see `refusal`.
    """
    scale, alive = session.need.scale, nodes()
    if len(alive) == 1 and _is_here(alive[0].id):
        yield lambda: measure(scale.workers, bool(scale.gpus_per_worker))
        return
    token = home() / f".{run.name.replace('/', '.')}.{run.attempt}.preflight"
    token.parent.mkdir(parents=True, exist_ok=True)
    try:
        write_atomic(token, run.attempt)
        shards = _some_shards(index)
        pending = {
            node.id: _ask(node.id, Asked(workers, bool(scale.gpus_per_worker), token, run.attempt, shards))
            for node, workers in zip(alive, places(session.need, alive))
            if workers
        }
        yield lambda: _weakest(_answers(pending))
    finally:
        token.unlink(missing_ok=True)


def _weakest(answers: list[Answer]) -> Machine:
    reason = refusal(answers, _versions())
    if reason is not None:
        raise UserError(reason)
    return weakest([answer.machine for answer in answers])


def _ask(node: str, question: Asked) -> Any:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    there: Any = NodeAffinitySchedulingStrategy(node, soft=False)
    task: Any = ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=there)(look)
    return task.remote(question)


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


def _some_shards(index: Index) -> list[tuple[str, int]]:
    chosen = np.unique(np.linspace(0, len(index.shards) - 1, SHARDS).astype(int))
    return [(index.shards[i], index.shard_sizes[i]) for i in chosen]


def _size(shard: str) -> int | None:
    try:
        return store_of(shard, REACH_S).stat(shard).size if is_url(shard) else os.stat(shard).st_size
    except (OSError, VergenceError):
        return None


def _versions() -> Versions:
    return Versions(_version("ray"), _version("torch"), code_version())


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
