"""Every command of docs/first-hour.md, in its order, on real photographs; and what the page shows of what they print."""

import io
import os
import re
import signal
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pyarrow.parquet as parquet
import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "first-hour.md"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
CTRL_C = "^C"
NUMBER = r"\d[\d,.:]*(?:e-\d+)?(?:\+[\w-]+)?"  # what a machine, a moment or a commit may change
SIDE = 160  # pixels of a crop of a photograph
CLASSES = {3: "cat", 7: "horse", 8: "ship"}


class Step(NamedTuple):
    command: list[str]  # words for a shell
    shown: str  # what the page shows of its output; a line `...` stands for any lines, `^C` for an interrupt


def steps_of(text: str) -> Iterator[Step]:
    """The commands of a page's `console` blocks, and its `python` blocks with the `text` block that follows."""
    blocks = BLOCK.findall(text)
    for (kind, body), (next_kind, next_body) in zip(blocks, [*blocks[1:], ("", "")]):
        if kind == "console":
            for part in re.split(r"^\$ ", body, flags=re.MULTILINE)[1:]:
                command, _, shown = part.partition("\n")
                yield Step(["sh", "-c", f"exec {command}"], shown)  # Ctrl-C is the program's, not the shell's
        elif kind == "python":
            yield Step([sys.executable, "-c", body], next_body if next_kind == "text" else "...\n")


def pattern_of(shown: str) -> re.Pattern[str]:
    """What output must look like: numbers, digests and widths of columns may be others, `...` is any lines."""
    return re.compile("".join(_line_pattern(line) for line in shown.splitlines()))


def _line_pattern(line: str) -> str:
    if line == "...":
        return r"(?:.*\n)*?"
    kinds = {"digest": "[0-9a-f]{12}", "number": NUMBER, "space": " +"}
    parts = re.split(rf"(\b[0-9a-f]{{12}}\b|{NUMBER}| +)", line.rstrip())
    told = [
        re.escape(part)
        if i % 2 == 0
        else kinds[
            "space" if part.isspace() else "digest" if len(part) == 12 and part.isalnum() else "number"
        ]
        for i, part in enumerate(parts)
    ]
    return "".join(told) + r" *\n"


def carry_out(step: Step, folder: Path, environment: dict[str, str]) -> None:
    """Run it, pressing Ctrl-C where the page does; its output is what the page shows."""
    before, pressed, _ = step.shown.partition(f"{CTRL_C}\n")
    told = ""
    with subprocess.Popen(
        step.command,
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        for line in process.stdout:
            told += line
            if pressed and pattern_of(before).fullmatch(told):
                os.killpg(process.pid, signal.SIGINT)  # a terminal tells all that it runs
                pressed = ""
    name = step.command[-1]
    assert not pressed, f"{name}: what the page shows before {CTRL_C} did not come:\n{told}"
    assert process.returncode == (130 if CTRL_C in step.shown.splitlines() else 0), f"{name}\n{told}"
    shown = step.shown.replace(f"{CTRL_C}\n", "")
    assert pattern_of(shown).fullmatch(told), f"{name}: the page shows\n{shown}\nit printed\n{told}"


@pytest.fixture
def pictures(tmp_path: Path, shared: Path) -> Path:
    """A folder with what the page starts from: photos/, and classes/train and classes/test."""
    (tmp_path / "photos").mkdir()
    with zipfile.ZipFile(shared / "data/photos/photos.zip") as photos:
        for name in photos.namelist():
            image = Image.open(io.BytesIO(photos.read(name))).convert("RGB")
            right, bottom = image.width - SIDE, image.height - SIDE
            for corner, (x, y) in enumerate([(0, 0), (right, 0), (0, bottom), (right, bottom)]):
                crop = image.crop((x, y, x + SIDE, y + SIDE))
                crop.save(tmp_path / "photos" / f"{Path(name).stem}-{corner}.jpg", quality=90)
    for part, file in {"train": "train-00000-of-00004", "test": "test-00000-of-00001"}.items():
        rows = parquet.ParquetFile(shared / f"data/cifar10/{file}.parquet").read_row_group(0).to_pylist()
        for i, row in enumerate(rows):
            if row["label"] in CLASSES:
                path = tmp_path / "classes" / part / CLASSES[row["label"]] / f"{i:04d}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.open(io.BytesIO((row.get("img") or row["image"])["bytes"])).save(path)
    return tmp_path


@pytest.mark.slow
def test_every_command_of_the_page_prints_what_the_page_shows(pictures: Path) -> None:
    environment = {
        name: value for name, value in os.environ.items() if name not in ("VERGENCE_HOME", "COLUMNS")
    }
    environment |= {
        "PATH": f"{Path(sys.executable).parent}:{environment['PATH']}",
        "PYTHONUNBUFFERED": "1",  # what goes to stdout and to stderr comes in the order in which it was printed
        "CUDA_VISIBLE_DEVICES": "",
    }
    for step in steps_of(PAGE.read_text()):
        carry_out(step, pictures, environment)


def test_what_the_page_shows_is_compared_but_for_numbers() -> None:
    shown = "data  346 of 384; digest 091260a4a0b6\n...\nstep 20/20 · ETA 0:00\n"
    pattern = pattern_of(shown)
    assert pattern.fullmatch("data 34 of 1,384; digest ffffffa4a0b6\nstep 1/2 · ETA 1:00:00\n")
    assert pattern.fullmatch("data 34 of 384; digest ffffffa4a0b6\na\nb\nstep 1/2 · ETA 0:00\n")
    assert not pattern.fullmatch("data 34 of 384; digest ffffffa4a0b6\nstep 1/2 · left 0:00\n")
    assert not pattern.fullmatch("data 34 of 384; digest ffffffa4a0b6\nstep 1/2 · ETA 0:00\nand more\n")


def test_commands_are_read_with_what_they_print() -> None:
    page = "```console\n$ a b\none\n$ c\n```\nwords\n```python\nprint(1)\n```\n\n```text\n1\n```\n"
    steps = list(steps_of(page))
    assert [step.command[-1] for step in steps] == ["exec a b", "exec c", "print(1)\n"]
    assert [step.shown for step in steps] == ["one\n", "", "1\n"]
