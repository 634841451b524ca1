"""Recipes and searches that come with the package, by name."""

from pathlib import Path
from typing import Literal

from vergence.platform.errors import UserError, nearest

Kind = Literal["recipe", "search"]
FOLDERS: dict[Kind, str] = {"recipe": "recipes", "search": "searches"}


def shipped(kind: Kind) -> dict[str, Path]:
    """Name -> file."""
    folder = Path(__file__).parent / FOLDERS[kind]
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def file_of(kind: Kind, name: str) -> Path:
    """The file of a shipped one or a path; UserError naming the nearest shipped one."""
    there = shipped(kind)
    if name in there:
        return there[name]
    path = Path(name)
    if path.is_file():
        return path
    if path.suffix in (".yaml", ".yml") or "/" in name:
        raise UserError(f"{name}: no such {kind} file")
    raise UserError(f"{name}: no such {kind} ({nearest(name, there)}); or give the path of a .yaml file")
