"""The driver's side of training: starts Ray Train, watches it, passes a stop on."""

import contextlib
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from functools import partial

from vergence.platform.cluster.capacity import ScaleConfig
from vergence.platform.cluster.session import Session
from vergence.platform.cluster.waiting import Waiting
from vergence.platform.cluster.worker import work
from vergence.platform.data.stream import Stream
from vergence.platform.runs.outcome import Outcome, read_outcome, reserve_outcome
from vergence.platform.runs.records import Event, Note, StepMark, Tail
from vergence.platform.runs.stop import Stop
from vergence.platform.train.job import Job

IDLE_S = 30.0  # without a record of a step
FAREWELL_S = 30.0  # for ranks that start anew, see the outcome and return


def fit(
    job: Job,
    stream: Stream,
    session: Session,
    *,
    name: str,
    start_step: int,
    stop: Stop,
    observe: Callable[[Event], None],
) -> Outcome:
    """Run the ranks from `start_step` to the end, a stop or a failure.

    observe: gets each new record on the calling thread, twice a second, and now and then what the run waits for.
    A stop before the first step, or while ranks wait for a lost node, does not wait: there is nothing to commit.
    """
    waiting = Waiting(lambda reason: observe(Note(reason)))
    has_stepped, failed, mark = False, None, StepMark(job.run / "logs")
    mark.read()  # of an earlier attempt
    with _heard(stop, job), Tail(job.run / "logs", after=float(start_step)) as tail:
        while not stop.is_asked and session.missing():
            waiting.look(session.missing)
            time.sleep(0.5)
        if stop.is_asked:
            return Outcome("interrupted")
        reserve_outcome(job.outcome_file)
        fitting = _Fitting(job, stream, session.need.scale, name)
        fitting.start()
        while fitting.is_alive() and failed is None:
            fitting.join(0.5)
            has_stepped = _pass_on(tail, mark, observe) or has_stepped
            waiting.look(partial(_delay, job, session, has_stepped))
            # in the caller's session the ranks would go on without us: there they stop themselves
            if stop.is_asked and session.place != "caller" and (not has_stepped or session.pending()):
                return Outcome("interrupted")
            failed = _failure(job)  # Ray would start the ranks anew
        # Ray ends a process, without a word, in which a thread still waits for it when its session is closed
        fitting.join(FAREWELL_S)
        _pass_on(tail, mark, observe)
    return failed or read_outcome(job.outcome_file) or Outcome("failed", fitting.failure)


@contextlib.contextmanager
def _heard(stop: Stop, job: Job) -> Iterator[None]:
    """A stop reaches the ranks, as a file that rank 0 looks for."""
    try:
        with stop.heard(job.stop_file.touch):
            yield
    finally:
        job.stop_file.unlink(missing_ok=True)


class _Fitting(threading.Thread):
    """Ray Train's own run. On the main thread it would take the signal handlers, and abort without a commit."""

    def __init__(self, job: Job, stream: Stream, scale: ScaleConfig, name: str) -> None:
        super().__init__(name="fit", daemon=True)
        self.arguments, self.failure = (job, stream, scale, name), "the training thread died"

    def run(self) -> None:
        self.failure = _fit(*self.arguments)


def _pass_on(tail: Tail, mark: StepMark, observe: Callable[[Event], None]) -> bool:
    """Whether there were new records."""
    records = tail.read()
    for record in records:
        observe(record)
    if (stepped := mark.read()) is not None:
        observe(stepped)
    return bool(records)


def _failure(job: Job) -> Outcome | None:
    outcome = read_outcome(job.outcome_file)
    return outcome if outcome is not None and outcome.status == "failed" else None


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
