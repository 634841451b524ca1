"""What a user sees of a run: the first screen and the progress line."""

import os
import shlex
import sys
import time
from collections.abc import Mapping
from itertools import pairwise

from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from vergence.pipelines.advance import Planned
from vergence.pipelines.scale import told
from vergence.platform.cluster.session import Place
from vergence.platform.masking import masked
from vergence.platform.mlflow_store import database, tracking_uri
from vergence.platform.runs.records import Event, FirstStep, Metrics, Monitored, Note, Record
from vergence.platform.train.machine import Machine
from vergence.platform.version import code_version

PLAIN_EVERY_S = 10.0

console = Console(stderr=True, highlight=False, soft_wrap=True)


def say(line: str) -> None:
    """One line for the user, on stderr; paths below the current folder are relative to it, secrets are masked."""
    here = os.path.join(os.getcwd(), "")
    console.print(masked(line if here == os.sep else line.replace(here, "")), markup=False)


def first_screen(planned: Planned) -> None:
    """What runs on what, how many steps, which learning rate, which batch regime, where it is kept."""
    resolved, run = planned.resolved, planned.run
    recipe, plan, layout = resolved.recipe, resolved.plan, resolved.layout
    encoder, scale = recipe.encoder, resolved.need.scale
    begun = f"goes on at step {resolved.start_step:,}" if resolved.start_step else "new"
    rows = {
        "method": f"{recipe.method.name} on {encoder.name} (stem {encoder.stem}, width {encoder.width:g}), "
        f"{planned.num_parameters / 1e6:.2f} M parameters",
        "data": f"{plan.num_training:,} of {plan.num_samples:,} samples train, the rest is held out for the "
        f"monitor; digest {resolved.index.digest[:12]}",
        "batch": f"{plan.global_batch} = {scale.workers} workers x {layout.share}, micro {layout.micro} "
        f"({layout.regime}), batch norm over {layout.norm_group}; about {decimal(layout.num_bytes)} a worker",
        "steps": f"{resolved.steps:,} = {recipe.epochs} epochs x {plan.batches_per_epoch:,}; {recipe.optim.name}, "
        f"lr {resolved.lr:g} ({recipe.optim.rule} from {recipe.optim.lr:g} per {recipe.optim.per}), "
        f"warm-up {recipe.schedule.warmup_epochs:g} epochs, {recipe.schedule.shape}",
        "machine": f"{resolved.need.arithmetic()} on {_machine(resolved.machine, planned.place)}; {layout.precision}, "
        f"ZeRO {scale.zero}",
        **({} if planned.found is None else {"found": told(planned.found, scale)}),
        "kept in": f"{run.path}",
        "look": f"mlflow ui --backend-store-uri {shlex.quote(tracking_uri())}"
        if database(tracking_uri())
        else tracking_uri(),
    }
    say(f"vergence {code_version()} · run {run.name} ({begun})")
    for name, text in [*rows.items(), *(("note", note) for note in resolved.index.notes)]:
        say(f"  {name:<8} {text}")


def _machine(machine: Machine, place: Place) -> str:
    return {
        "own": f"{machine.cpus} physical",
        "cluster": f"the Ray cluster of RAY_ADDRESS (nodes of {machine.cpus} physical CPUs or more)",
        "caller": "the Ray session of this process",
    }[place]


class Screen:
    """Shows what a run tells, on stderr."""

    def __init__(self) -> None:
        self._line: ProgressLine | None = None

    def __enter__(self) -> "Screen":
        return self

    def __exit__(self, *error: object) -> None:
        if self._line is not None:
            self._line.stop()

    def observe(self, event: Event | Planned) -> None:
        match event:
            case Planned():
                first_screen(event)
                resolved = event.resolved
                self._line = ProgressLine(resolved.steps, resolved.start_step, resolved.plan.global_batch)
            case Note(text):
                say(text)
            case _:
                assert self._line is not None, "records come after the plan"
                self._line.update(event)


class ProgressLine:
    """One line that tells step, loss, kNN, speed, waiting and time left; plain lines without a terminal."""

    def __init__(self, steps: int, start_step: int, global_batch: int) -> None:
        self.steps, self.global_batch, self.facts = steps, global_batch, dict[str, str]()
        self._printed_s = 0.0
        self._bar = Progress(
            TextColumn("step {task.completed:,.0f}/{task.total:,.0f}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[facts]}"),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            console=console,
            disable=not sys.stderr.isatty(),
        )
        self._task = self._bar.add_task("train", total=steps, completed=start_step, facts="starting ...")
        self._bar.start()

    def stop(self) -> None:
        self._bar.stop()

    def update(self, record: Record) -> None:
        """Show a new record."""
        match record:
            case FirstStep():
                say(start_up(record.stages))
            case Monitored():
                self._monitored(record)
            case Metrics() if "loss" in record.values:
                self._stepped(record)
        if not isinstance(record, FirstStep) and record.warning:
            say(f"  {record.warning}")

    def _stepped(self, record: Metrics) -> None:
        values = record.values
        self.facts |= {
            "loss": f"loss {values['loss']:.4f}",
            "speed": f"{values['images_per_s']:.0f} images/s",
            "wait": f"waiting for data {values['data_wait_share']:.1%}",
        }
        done = record.step + 1
        text = " · ".join(self.facts.values())
        self._bar.update(self._task, completed=done, facts=text)
        due = time.monotonic() - self._printed_s > PLAIN_EVERY_S
        if self._bar.disable and due:
            self._printed_s = time.monotonic()
            left = (self.steps - done) * self.global_batch / values["images_per_s"]
            say(f"step {done:,}/{self.steps:,} · {text} · ETA {_clock(left)}")

    def _monitored(self, record: Monitored) -> None:
        rank = f"{record.values['h_effective_rank']:.1f}"
        knn = record.values.get("knn")
        self.facts["knn"] = f"rank of h {rank}" if knn is None else f"kNN {knn:.3f}"
        zero_shot = record.values.get("zero_shot")
        named = "" if zero_shot is None else f" · zero-shot {zero_shot:.3f}"
        say(f"epoch {record.epoch} · {self.facts['knn']}{named} · effective rank of h {rank}")


def start_up(stages: Mapping[str, float]) -> str:
    """`first step after 18.3 s: checks 3.1, ray 2.2, ...` from the Unix times at which stages were done."""
    moments = sorted(stages.items(), key=lambda stage: stage[1])
    parts = [f"{name} {moment - before:.1f}" for (_, before), (name, moment) in pairwise(moments)]
    return f"first step after {moments[-1][1] - moments[0][1]:.1f} s: {', '.join(parts)}"


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
