"""What a user sees of a run: the first screen and the progress line."""

import shlex
import textwrap
import time
from collections.abc import Mapping
from itertools import pairwise

from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, Progress, TextColumn

from vergence.pipelines.advance import Planned
from vergence.pipelines.resolve import Resolved
from vergence.pipelines.scale import told
from vergence.platform.cluster.session import Place
from vergence.platform.data.plan import Plan
from vergence.platform.encoders.pretrained import Initial
from vergence.platform.masking import masked
from vergence.platform.mlflow_store import database, tracking_uri
from vergence.platform.runs.records import Event, FirstStep, Metrics, Monitored, Note, Record, Stepped
from vergence.platform.text import below_here
from vergence.platform.train.machine import Machine
from vergence.platform.version import code_version

PLAIN_EVERY_S = 10.0
WIDE = 100  # columns from which the bar is long
TOLD = ("loss", "speed", "ETA", "quality", "wait")  # in this order
FEW = 100  # held-out images below which kNN and rank say little

console = Console(stderr=True, highlight=False, soft_wrap=True)


def say(line: str, console: Console = console, indent: int | None = None) -> None:
    """One line for the user, on stderr; paths below the current folder are relative to it, secrets are masked.

    indent: columns at which it goes on, between two words, where a terminal is too narrow for it; None: it stays one
    line, which the terminal breaks anywhere, so that a command in it can be copied.
    """
    text = masked(below_here(line))
    if indent is not None and console.is_terminal:
        text = textwrap.fill(
            text,
            console.width,
            subsequent_indent=" " * indent,
            break_long_words=False,
            break_on_hyphens=False,
        )
    console.print(text, markup=False)


def first_screen(planned: Planned) -> None:
    """What runs on what, how many steps, which learning rate, which batch regime, where it is kept."""
    resolved, run = planned.resolved, planned.run
    recipe, plan, layout = resolved.recipe, resolved.plan, resolved.layout
    encoder, scale = recipe.encoder, resolved.need.scale
    if resolved.start_step:
        begun = f"goes on at step {resolved.start_step:,}"
    else:
        begun = f"forked from {planned.forked_from}" if planned.forked_from else "new"
    rows = {
        "method": f"{recipe.method.name} on {encoder.name} (stem {encoder.stem}, width {encoder.width:g}), "
        f"{planned.num_parameters / 1e6:.2f} M parameters",
        **({} if resolved.initial is None else {"weights": _weights(resolved.initial)}),
        "data": f"{_held_out(plan)}; digest {resolved.index.digest[:12]}",
        **({} if plan.order.kind == "full" else {"order": _windows(resolved)}),
        **({} if resolved.stream.vocabulary is None else {"texts": _tokens(resolved)}),
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
    notes = [*resolved.index.notes, *_few_held_out(plan)]
    for name, text in [*rows.items(), *(("note", note) for note in notes)]:
        say(f"  {name:<8} {text}", indent=None if name == "look" else 11)


def _weights(initial: Initial) -> str:
    interpolated = f"; interpolated: {', '.join(initial.resampled)}" if initial.resampled else ""
    return f"{initial.where}, sha256 {initial.digest[:12]}{interpolated}"


def _tokens(resolved: Resolved) -> str:
    vocabulary, asked = resolved.stream.vocabulary, resolved.recipe.data.vocabulary
    found = vocabulary.size if vocabulary else asked
    few = f"; the captions teach no more of the {asked:,}" if found < asked else ""
    return f"{found:,} tokens, learned from captions{few}"


def _windows(resolved: Resolved) -> str:
    """What the order holds, and what that costs a node."""
    index, plan = resolved.index, resolved.plan
    windows = plan.num_windows
    held = sum(index.shard_sizes) // windows
    return (
        f"chunks of {plan.order.chunk} neighbours, {-(-plan.num_samples // plan.order.chunk // windows):,} of them shuffled "
        f"together ({decimal(held)}); data.order.kind=full shuffles all"
    )


def _held_out(plan: Plan) -> str:
    if not plan.num_holdout:
        return (
            f"all {plan.num_samples:,} samples train; data.holdout=0 keeps none for the monitor, which is off"
        )
    return (
        f"{plan.num_training:,} of {plan.num_samples:,} samples train, the rest is held out for the monitor"
    )


def _few_held_out(plan: Plan) -> list[str]:
    """A remark on a holdout that is too small to mean anything, with the cure if there is one."""
    held = plan.num_holdout
    if not 0 < held < FEW:
        return []
    share = min(0.5, max(0.1, round(FEW / plan.num_samples, 2)))
    more = (
        f"data.holdout={share:g} holds out more"
        if share * plan.num_samples > held + 1
        else "more images help"
    )
    return [f"{held} held-out samples are too few for a kNN or a rank that means anything; {more}"]


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
                self._line = ProgressLine(resolved.steps, resolved.start_step)
            case Note(text):
                if self._line is not None and self._line.done == self._line.steps:
                    self._line.stop()  # what follows training stands below the bar
                say(text)
            case _:
                assert self._line is not None, "records come after the plan"
                self._line.update(event)

    def stopping(self, text: str) -> None:
        """That a signal was heard; it stands in the bar until the last line says what came of it."""
        if self._line is not None:
            self._line.stopping(text)


def stopped(step: int) -> str:
    """The last line of a run that was stopped."""
    if not step:
        return "stopped before the first step; the same command begins anew"
    return f"stopped at step {step:,}; the same command goes on from there"


class ProgressLine:
    """One line that tells step, loss, speed, time left, what the monitor says; plain lines without a terminal."""

    def __init__(self, steps: int, start_step: int, console: Console = console) -> None:
        self.steps, self.done, self.console = steps, start_step, console
        self.facts = dict[str, str]()
        self._printed_s = 0.0
        self._first: tuple[float, int] | None = None  # monotonic time and steps when the first one was done
        self._explained = False
        self._stopping: str | None = None
        wide = console.width >= WIDE
        self._bar = Progress(
            TextColumn("step {task.completed:,.0f}/{task.total:,.0f}"),
            BarColumn(bar_width=24 if wide else 12),
            TextColumn("{task.fields[facts]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self._room = console.width - len(f"step {steps:,}/{steps:,}") - (24 if wide else 12) - 3
        self._task = self._bar.add_task("train", total=steps, completed=start_step, facts="starting ...")
        self._bar.start()

    def stop(self) -> None:
        self._bar.stop()

    def stopping(self, text: str) -> None:
        """Show this, or as much of it as there is room for, in the place of the facts from here on."""
        self._stopping = text if len(text) <= self._room else text.partition(" (")[0][: self._room]
        self._bar.update(self._task, facts=self._stopping)

    def update(self, record: Record | Stepped) -> None:
        """Show a new record, or that steps were done."""
        match record:
            case Stepped(steps):
                self._moved(steps)
            case FirstStep():
                self._say(start_up(record.stages), indent=2)
            case Monitored():
                self._monitored(record)
            case Metrics() if "loss" in record.values:
                self._stepped(record)
        if isinstance(record, Metrics | Monitored) and record.warning:
            self._say(f"  {record.warning}", indent=2)

    def _moved(self, steps: int) -> None:
        """What the start took is no part of the time that is left."""
        now = time.monotonic()
        self.done = max(self.done, steps)
        if self._first is None:
            self._first = (now, self.done)
        began_s, before = self._first
        if self.done > before:
            left_s = (now - began_s) / (self.done - before) * (self.steps - self.done)
            self.facts["ETA"] = f"ETA {_clock(left_s)}"
        self._bar.update(
            self._task, completed=self.done, facts=self._stopping or fitting(self.facts, self._room)
        )

    def _stepped(self, record: Metrics) -> None:
        values = record.values
        self.facts["loss"] = f"loss {values['loss']:.4f}"
        if "images_per_s" in values:
            self.facts["speed"] = f"{values['images_per_s']:.0f} images/s"
            self.facts["wait"] = f"waiting for data {values['data_wait_share']:.1%}"
        self._moved(record.step + 1)
        due = time.monotonic() - self._printed_s > PLAIN_EVERY_S or self.done == self.steps
        if self._bar.disable and due:
            self._printed_s = time.monotonic()
            self._say(f"step {self.done:,}/{self.steps:,} · {fitting(self.facts)}")

    def _monitored(self, record: Monitored) -> None:
        rank = f"effective rank of h {record.values['h_effective_rank']:.1f}"
        knn = f"kNN {record.values['knn']:.3f}" if "knn" in record.values else None
        self.facts["quality"] = knn or f"rank {record.values['h_effective_rank']:.1f}"
        zero_shot = f"zero-shot {record.values['zero_shot']:.3f}" if "zero_shot" in record.values else None
        self._bar.update(self._task, facts=fitting(self.facts, self._room))
        self._say(f"epoch {record.epoch} · {' · '.join(filter(None, [knn, zero_shot, rank]))}")
        if knn is None and not self._explained:
            self._explained = True
            self._say(
                f"  no kNN: it needs classes. The rank says how many directions the {record.values['holdout']:,.0f} "
                "held-out images use: it should grow well above 2, at which all has collapsed; compare it within this run",
                indent=2,
            )

    def _say(self, line: str, indent: int | None = None) -> None:
        say(line, self.console, indent)


def fitting(facts: Mapping[str, str], room: int = 10**6) -> str:
    """The facts that there is room for, the most telling first; `room` in characters."""
    told = ""
    for text in (facts[name] for name in TOLD if name in facts):
        longer = f"{told} · {text}" if told else text
        if len(longer) <= room:
            told = longer
    return told or "starting ..."[:room]


def start_up(stages: Mapping[str, float]) -> str:
    """`first step after 18.3 s: checks 3.1, ray 2.2, ...` from the Unix times at which stages were done."""
    moments = sorted(stages.items(), key=lambda stage: stage[1])
    parts = [f"{name} {moment - before:.1f}" for (_, before), (name, moment) in pairwise(moments)]
    return f"first step after {moments[-1][1] - moments[0][1]:.1f} s: {', '.join(parts)}"


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
