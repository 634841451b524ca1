import io
import re
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from vergence.pipelines import show
from vergence.pipelines.show import ProgressLine, fitting
from vergence.platform.data.plan import Plan
from vergence.platform.runs.records import FirstStep, Metrics, Monitored, Note, Stepped

SPEED = {"loss": 2.9729, "images_per_s": 932.4, "data_wait_share": 0.007}


def metrics(step: int, **more: float) -> Metrics:
    return Metrics(step, 0.0, {**SPEED, **more})


def rendered(line: ProgressLine) -> list[str]:
    """The bar as it stands on the terminal."""
    rows = line.console.render_lines(line._bar.get_renderable())
    return ["".join(segment.text for segment in row).rstrip() for row in rows]


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes a progress line on a terminal of so many columns; `clock` holds what time it is."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(time, "monotonic", lambda: clock.now)
    lines: list[ProgressLine] = []

    def on(columns: int, steps: int, *, terminal: bool = True) -> tuple[ProgressLine, io.StringIO, Any]:
        file = io.StringIO()
        console = Console(
            file=file, width=columns, force_terminal=terminal, color_system=None, soft_wrap=True
        )
        lines.append(ProgressLine(steps, 0, console))
        return lines[-1], file, clock

    yield on
    for line in lines:
        line.stop()


@pytest.mark.parametrize("columns", [60, 80, 120, 200])
def test_the_bar_is_one_line_with_loss_speed_and_time_left_at_any_width(screen: Any, columns: int) -> None:
    line, _, clock = screen(columns, 1_234_567)
    line.update(Monitored(0, 0.0, 1, {"h_effective_rank": 33.8, "knn": 0.86, "holdout": 200}))
    for step in (0, 100):
        clock.now += 50.0
        line.update(metrics(step))
    (text,) = rendered(line)
    assert len(text) <= columns
    assert "step 101/1,234,567" in text
    for part in ["loss 2.9729", "932 images/s", "ETA 171:27:13", "kNN 0.860", "waiting"][: columns // 20 - 2]:
        assert part in text


def test_the_bar_moves_with_every_step_and_the_start_is_no_part_of_the_time_left(screen: Any) -> None:
    line, _, clock = screen(80, 100)
    clock.now = 500.0  # of starting
    for step in range(1, 5):
        clock.now += 2.0
        line.update(Stepped(step))
        assert f"step {step}/100" in rendered(line)[0]
    assert "ETA 3:12" in rendered(line)[0]  # 96 steps of 2 s


def test_a_log_file_has_the_last_step_whatever_the_time(screen: Any) -> None:
    line, file, clock = screen(80, 16, terminal=False)
    clock.now = 100.0
    for step in (0, 9, 15):
        clock.now += 1.0
        line.update(metrics(step))
    told = file.getvalue().splitlines()
    assert [text.split(" · ")[0] for text in told] == ["step 1/16", "step 16/16"]
    assert told[-1].endswith("ETA 0:00 · waiting for data 0.7%")


def test_without_classes_it_is_said_once_why_there_is_no_knn(screen: Any) -> None:
    line, file, _ = screen(200, 16, terminal=False)
    for epoch in (1, 2):
        line.update(Monitored(epoch, 0.0, epoch, {"h_effective_rank": 33.8, "holdout": 58}))
    told = file.getvalue()
    assert told.count("no kNN: it needs classes") == 1
    assert "the 58 held-out images" in told
    assert "epoch 2 · effective rank of h 33.8\n" in told


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"knn": 0.5}, "epoch 2 · kNN 0.500 · effective rank of h 7.0"),
        ({"knn": 0.5, "zero_shot": 0.25}, "epoch 2 · kNN 0.500 · zero-shot 0.250 · effective rank of h 7.0"),
    ],
)
def test_scores_of_an_epoch_are_one_line(screen: Any, values: dict[str, float], told: str) -> None:
    line, file, _ = screen(200, 10, terminal=False)
    line.update(Monitored(5, 0.0, 2, {"h_effective_rank": 7.0, "holdout": 58, **values}))
    assert file.getvalue().strip() == told


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_words_are_whole_on_a_terminal_of_any_width_and_lines_are_whole_in_a_log_file(
    screen: Any, columns: int
) -> None:
    rank = Monitored(1, 0.0, 1, {"h_effective_rank": 33.8, "holdout": 58})
    stages = dict(zip(["enter", "checks", "ray", "workers", "model", "data", "first step"], range(7)))
    lines = []
    for terminal in (True, False):
        line, file, _ = screen(columns, 16, terminal=terminal)
        line.update(FirstStep(0, stages))
        line.update(rank)
        line.stop()
        lines.append([re.sub("\x1b[^a-zA-Z]*[a-zA-Z]|\r", "", text) for text in file.getvalue().splitlines()])
    wrapped, plain = lines
    told = [text for text in wrapped if not text.startswith("step ")]
    assert max(map(len, told)) <= columns
    assert len(plain) == 3
    assert " ".join(" ".join(plain).split()) in " ".join(" ".join(told).split())


def test_the_bar_has_what_the_last_epoch_came_to(screen: Any) -> None:
    line, _, _ = screen(80, 16)
    line.update(metrics(15))
    line.update(Monitored(16, 0.0, 1, {"h_effective_rank": 7.0, "knn": 0.5, "holdout": 58}))
    assert "kNN 0.500" in rendered(line)[0]


@pytest.mark.parametrize(("steps", "ended"), [(15, False), (16, True)])
def test_what_follows_training_stands_below_the_bar(screen: Any, steps: int, ended: bool) -> None:
    with show.Screen() as seen:
        seen._line, _, _ = screen(80, 16)
        seen.observe(Stepped(steps))
        seen.observe(Note("exporting the encoder"))
        assert seen._line._bar.live.is_started != ended


def test_what_does_not_fit_is_left_out_the_least_telling_first() -> None:
    facts = {"wait": "waiting", "loss": "loss 1", "speed": "9 images/s", "ETA": "ETA 1:00"}
    assert fitting(facts) == "loss 1 · 9 images/s · ETA 1:00 · waiting"
    assert fitting(facts, 30) == "loss 1 · 9 images/s · ETA 1:00"
    assert fitting({}, 80) == "starting ..."


def test_nothing_held_out_is_said() -> None:
    assert "all 40 samples train; data.holdout=0" in show._held_out(Plan(40, 0, 0, 8))
    assert "36 of 40 samples train" in show._held_out(Plan(40, 0.1, 0, 8))


def test_the_plot_shows_what_was_measured(tmp_path: Path) -> None:
    from vergence.platform.runs.plots import curves_of, draw
    from vergence.platform.runs.records import line

    step = Metrics(3, 0.0, {"loss": 1.0, "lr": 0.1})
    rank = Monitored(3, 0.0, 1, {"h_effective_rank": 3.0})
    assert list(curves_of([step, rank]).values()) == ["loss", "h_effective_rank", "lr"]
    assert "knn" in curves_of([Monitored(3, 0.0, 1, {"h_effective_rank": 3.0, "knn": 0.5})]).values()
    (tmp_path / "metrics.jsonl").write_text(line(step) + line(rank))
    assert draw(tmp_path).stat().st_size > 5000


def test_a_holdout_that_is_too_small_is_told_in_a_line_with_the_cure() -> None:
    def told(samples: int, share: float) -> str:
        (line,) = show._few_held_out(Plan(samples, share, 0, 8)) or ("",)
        return line

    assert "data.holdout=0.17 holds out more" in told(576, 0.1)
    assert told(576, 0.1).startswith(
        f"{Plan(576, 0.1, 0, 8).num_holdout} held-out samples are too few for a kNN"
    )
    assert told(576, 0.3) == ""
    assert told(576, 0) == ""  # none: the line about the data says so
    assert told(60_000, 0.01) == ""
    assert "more images help" in told(100, 0.5)


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_a_stop_ends_in_one_line_and_is_seen_in_the_bar_until_then(screen: Any, columns: int) -> None:
    text = "SIGINT: committing, then stopping (once more to stop at once)"
    line, file, clock = screen(columns, 1000)
    line.update(metrics(0))
    line.stopping(text)
    clock.now += 1
    line.update(Stepped(2))
    (row,) = rendered(line)
    assert len(row) <= columns
    assert ("step 2/1,000" in row, "SIGINT: committing" in row, "loss" in row) == (True, True, False)
    assert (text in row) == (columns == 120)
    line, file, clock = screen(80, 1000, terminal=False)
    line.stopping(text)
    line.update(Stepped(2))
    assert file.getvalue() == ""
    assert show.stopped(1234) == "stopped at step 1,234; the same command goes on from there"
    assert "before the first step" in show.stopped(0)
