"""An SQLite store that was moved or copied with its folder.

MLflow writes down absolute locations of all files. Experiments of ours keep theirs in `artifacts/NAME` beside the
database: where that is no longer what the database says, it is told the new place. So a state folder goes on
wherever it is put, for MLflow's own readers too.
"""

import contextlib
import os
import sqlite3
from pathlib import Path
from urllib.parse import urlparse
from urllib.request import url2pathname

# table -> column of locations; those of models are told only about files that did come along
WRITTEN_TO = {"experiments": "artifact_location", "runs": "artifact_uri"}
READ_ONLY = {"logged_models": "artifact_location", "model_versions": "storage_location"}
LOCK_S = 5.0


def local_path(location: str) -> Path | None:
    """The path of a file: location; None for any other."""
    url = urlparse(location)
    return Path(url2pathname(url.path)) if url.scheme == "file" else None


def follow(database: Path | None) -> None:
    """Tell the database where the artifacts beside it are, if it has moved.

    Raises sqlite3.DatabaseError: the file is no database.
    """
    if database is None or not database.is_file():
        return
    # an OperationalError is a missing table, a lock, a read-only disk: whatever matters, MLflow will say
    with (
        contextlib.closing(sqlite3.connect(database, timeout=LOCK_S)) as connection,
        contextlib.suppress(sqlite3.OperationalError),
        connection,
    ):
        for old, new in _moved(connection, database.parent):
            _tell(connection, old, new)


def _moved(connection: sqlite3.Connection, folder: Path) -> list[tuple[Path, Path]]:
    """Artifact folders of experiments: where the database thinks they are, and where they are."""
    moved = []
    for name, location in connection.execute("SELECT name, artifact_location FROM experiments"):
        old, new = local_path(location), folder / "artifacts" / name
        if old is None or old == new or not str(old).endswith(f"/artifacts/{name}"):
            continue  # nothing of ours, or where it belongs
        came_along = new.is_dir() and not (old.is_dir() and os.path.samefile(old, new))
        if came_along or not old.exists():
            moved.append((old, new))
    return moved


def _tell(connection: sqlite3.Connection, old: Path, new: Path) -> None:
    """Put `new` in the place of `old` at the beginning of every location."""
    for table, column in (WRITTEN_TO | READ_ONLY).items():
        rows = connection.execute(f"SELECT rowid, {column} FROM {table}").fetchall()
        for row, location in rows:
            path = local_path(location or "")
            if path is None or not (path == old or path.is_relative_to(old)):
                continue
            there = new / path.relative_to(old)
            if table in WRITTEN_TO or there.exists():
                connection.execute(f"UPDATE {table} SET {column} = ? WHERE rowid = ?", (there.as_uri(), row))
