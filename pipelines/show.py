"""What a user sees of a run: the first screen and the progress line."""

import os
import shlex
import sys
import time
from itertools import pairwise
from typing import Any

from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import nn

from vergence.pipelines.resolve import Resolved, code_version
from vergence.platform.cluster.capacity import physical_cpus
from vergence.platform.cluster.session import place
from vergence.platform.masking import masked
from vergence.platform.mlflow_store import database, tracking_uri
from vergence.platform.runs.run import Run

PLAIN_EVERY_S = 10.0

console = Console(stderr=True, highlight=False, soft_wrap=True)


def say(line: str) -> None:
    """One line for the user, on stderr; paths below the current folder are relative to it, secrets are masked."""
    here = os.path.join(os.getcwd(), "")
    console.print(masked(line if here == os.sep else line.replace(here, "")), markup=False)


def first_screen(resolved: Resolved, run: Run, start_step: int, method: nn.Module) -> None:
    """What runs on what, how many steps, which learning rate, which batch regime, where it is kept."""
    recipe, plan, choice = resolved.recipe, resolved.plan, resolved.choice
    encoder, scale = recipe.encoder, recipe.scale
    begun = f"goes on at step {start_step:,}" if start_step else "new"
    rows = {
        "method": f"{recipe.method.name} on {encoder.name} (stem {encoder.stem}, width {encoder.width:g}), "
        f"{sum(p.numel() for p in method.parameters() if p.requires_grad) / 1e6:.2f} M parameters",
        "data": f"{plan.num_training:,} of {plan.num_samples:,} samples train, the rest is held out for the "
        f"monitor; digest {resolved.index.digest[:12]}",
        "batch": f"{plan.global_batch} = {scale.workers} workers x {resolved.share}, micro {choice.micro} "
        f"({choice.regime}), batch norm over {resolved.norm.group}; about {decimal(choice.num_bytes)} a worker",
        "steps": f"{resolved.steps:,} = {recipe.epochs} epochs x {plan.batches_per_epoch:,}; {recipe.optim.name}, "
        f"lr {resolved.lr:g} ({recipe.optim.rule} from {recipe.optim.lr:g} per {recipe.optim.per}), "
        f"warm-up {recipe.schedule.warmup_epochs:g} epochs, {recipe.schedule.name}",
        "machine": f"{resolved.need.arithmetic()} on {_machine()}; {resolved.precision}, ZeRO {scale.zero}",
        "kept in": f"{run.path}",
        "look": f"mlflow ui --backend-store-uri {shlex.quote(tracking_uri())}"
        if database(tracking_uri())
        else tracking_uri(),
    }
    say(f"vergence {code_version()} · run {run.name} ({begun})")
    for name, text in [*rows.items(), *(("note", note) for note in resolved.index.notes)]:
        say(f"  {name:<8} {text}")


def _machine() -> str:
    return {
        "own": f"{physical_cpus()} physical",
        "cluster": "the Ray cluster of RAY_ADDRESS",
        "caller": "the Ray session of this process",
    }[place()]


class ProgressLine:
    """One line that tells step, loss, kNN, speed, waiting and time left; plain lines without a terminal."""

    def __init__(self, steps: int, start_step: int, global_batch: int) -> None:
        self.steps, self.global_batch, self.facts = steps, global_batch, dict[str, str]()
        self.started = False
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

    def __enter__(self) -> "ProgressLine":
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def update(self, records: list[dict[str, Any]]) -> None:
        """Show new records of metrics.jsonl."""
        for record in records:
            self.started = True
            if record.get("event") == "first_step":
                say(start_up(record["stages"]))
            elif record.get("event") == "monitor":
                self._monitored(record)
            elif "loss" in record:
                self._stepped(record)
            if record.get("warning"):
                say(f"  {record['warning']}")

    def _stepped(self, record: dict[str, Any]) -> None:
        self.facts |= {
            "loss": f"loss {record['loss']:.4f}",
            "speed": f"{record['images_per_s']:.0f} images/s",
            "wait": f"waiting for data {record['data_wait_share']:.1%}",
        }
        done = record["step"] + 1
        text = " · ".join(self.facts.values())
        self._bar.update(self._task, completed=done, facts=text)
        due = time.monotonic() - self._printed_s > PLAIN_EVERY_S
        if self._bar.disable and due:
            self._printed_s = time.monotonic()
            left = (self.steps - done) * self.global_batch / record["images_per_s"]
            say(f"step {done:,}/{self.steps:,} · {text} · ETA {_clock(left)}")

    def _monitored(self, record: dict[str, Any]) -> None:
        score = (
            f"kNN {record['knn']:.3f}" if "knn" in record else f"rank of h {record['h_effective_rank']:.1f}"
        )
        self.facts["knn"] = score
        say(f"epoch {record['epoch']} · {score} · effective rank of h {record['h_effective_rank']:.1f}")


def start_up(stages: dict[str, float]) -> str:
    """`first step after 18.3 s: checks 3.1, ray 2.2, ...` from the Unix times at which stages were done."""
    moments = sorted(stages.items(), key=lambda stage: stage[1])
    parts = [f"{name} {moment - before:.1f}" for (_, before), (name, moment) in pairwise(moments)]
    return f"first step after {moments[-1][1] - moments[0][1]:.1f} s: {', '.join(parts)}"


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
