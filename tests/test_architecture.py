"""docs/architecture.md speaks of what is there."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "docs" / "architecture.md").read_text()
PACKAGES = ("platform", "methods", "pipelines")


def test_every_file_and_room_that_it_names_exists() -> None:
    named = set(re.findall(r"`((?:platform|methods|pipelines|tests|docs)/[\w./]*)`", TEXT))
    assert len(named) > 15
    placeholders = {"methods/NAME.py", "pipelines/VERB.py"}
    assert {name for name in named - placeholders if not (ROOT / name).exists()} == set()


def test_its_picture_shows_every_room() -> None:
    picture = TEXT.split("```")[1]
    shown = set(re.findall(r"[├└]─ (\w+)/", picture))
    rooms = {
        path.name
        for package in ("platform", "methods")
        for path in (ROOT / package).iterdir()
        if path.is_dir()
    }
    assert shown == rooms - {"__pycache__"}


def test_files_in_its_picture_exist() -> None:
    picture = TEXT.split("```")[1]
    files = re.findall(r"\b(\w+\.py)\b", picture.split("platform/")[0])
    assert files
    assert all((ROOT / "pipelines" / file).exists() for file in files)
