"""The driver's side of training: starts Ray Train, watches it, turns signals into a commit."""

import contextlib
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from types import FrameType
from typing import Any

from vergence.platform.cluster.capacity import ScaleConfig
from vergence.platform.cluster.session import Session
from vergence.platform.cluster.waiting import Waiting
from vergence.platform.cluster.worker import work
from vergence.platform.data.stream import Stream
from vergence.platform.train.job import Job, Outcome, read_outcome, reserve_outcome

IDLE_S = 30.0  # without a record of a step


class Interrupt:
    """The first SIGINT or SIGTERM asks the ranks to commit and return; a second one ends at once."""

    def __init__(self, job: Job, says: Callable[[str], None]) -> None:
        self.job, self.says, self.signal = job, says, 0

    @contextlib.contextmanager
    def handled(self) -> Iterator["Interrupt"]:
        # elsewhere Python takes no handlers: a notebook's or Tune's thread is stopped by its owner
        on_main = threading.current_thread() is threading.main_thread()
        numbers = (signal.SIGINT, signal.SIGTERM) if on_main else ()
        previous = {number: signal.signal(number, self._handle) for number in numbers}
        try:
            yield self
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
            self.job.stop_file.unlink(missing_ok=True)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.signal:
            raise SystemExit(128 + number)
        self.signal = number
        self.job.stop_file.touch()
        self.says(f"{signal.Signals(number).name}: committing, then stopping (once more to stop at once)")


def fit(
    job: Job, stream: Stream, session: Session, name: str, interrupt: Interrupt, watch: Callable[[], bool]
) -> Outcome:
    """Run the ranks to the end, a stop or a failure.

    `watch` is called twice a second and says whether a step has been taken: before the first one a stop
    does not wait, there is nothing to commit. What a run waits for is said now and then.
    """
    waiting = Waiting(interrupt.says)
    while session.missing():
        waiting.look(session.missing)
        if interrupt.signal:
            return Outcome("interrupted")
        time.sleep(0.5)
    result: list[Any] = []
    reserve_outcome(job)
    # fit() on the main thread would take the signal handlers and abort without a commit
    thread = threading.Thread(
        target=lambda: result.append(_fit(job, stream, session.need.scale, name)), daemon=True
    )
    thread.start()
    while thread.is_alive():
        thread.join(0.5)
        started = watch()
        waiting.look(partial(_delay, job, session, started))
        # in the caller's session the ranks would go on without us: there they stop themselves
        if interrupt.signal and not started and session.place != "caller":
            return Outcome("interrupted")
        outcome = read_outcome(job)
        if outcome is not None and outcome.status == "failed":
            return outcome  # Ray would start the ranks anew
    return read_outcome(job) or Outcome("failed", result[0] if result else "the training thread died")


def _delay(job: Job, session: Session, started: bool) -> str | None:
    """What the ranks wait for, before the first step or when Ray has to start them anew; None if for nothing."""
    logs, workers = job.run / "logs", session.need.scale.workers
    if started:
        idle_s = time.time() - (logs / "metrics.jsonl").stat().st_mtime
        return session.pending() if idle_s > IDLE_S else None
    mark = f"attempt {job.attempt}, "
    begun = sum(mark in path.read_text(errors="replace") for path in logs.glob("rank-*.log"))
    if begun == workers:
        return f"no step yet: {workers} workers build the model and read the first batch"
    return (
        session.pending()
        or f"no step yet: {begun} of {workers} workers have begun, Ray starts their processes"
    )


def _fit(job: Job, stream: Stream, scale: ScaleConfig, name: str) -> str:
    """Ray Train's own run; the first line of what it raised, or an empty string."""
    import ray.train
    from ray import cloudpickle
    from ray.train.torch import TorchConfig, TorchTrainer

    gpus = scale.gpus_per_worker
    trainer = TorchTrainer(
        work,
        train_loop_config={
            "job": cloudpickle.dumps((job, stream))
        },  # bytes: the controller need not import methods
        torch_config=TorchConfig(backend="nccl" if gpus else "gloo"),
        scaling_config=ray.train.ScalingConfig(
            num_workers=scale.workers,
            use_gpu=bool(gpus),
            resources_per_worker={"CPU": scale.cpus_per_worker, **({"GPU": gpus} if gpus else {})},
        ),
        run_config=ray.train.RunConfig(
            name=f"{name}-{job.attempt}",
            storage_path=str(job.run / "ray"),
            failure_config=ray.train.FailureConfig(
                max_failures=scale.max_failures,
                controller_failure_limit=2,  # type: ignore[call-arg]
            ),
        ),
    )
    try:
        trainer.fit()
    except Exception as error:
        with contextlib.suppress(OSError), (job.run / "logs" / "driver.log").open("a") as file:  # a full disk
            traceback.print_exc(file=file)
        return f"training failed: {_cause(error)}; the whole story is in {job.run / 'logs'}"
    return ""


def _cause(error: BaseException) -> str:
    """The line that says what happened: the last one of a traceback, the first one of any other message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    is_traceback = any(line.startswith("Traceback") for line in lines)
    return lines[-1 if is_traceback else 0] if lines else type(error).__name__
