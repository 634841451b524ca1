"""What a mirror has of runs, in a store: read by whoever goes on with a run elsewhere, or looks.

    URL/RUN/lock.json
    URL/RUN/commits/step-00001200.ATTEMPT/state.safetensors, recipe.resolved.yaml, run.json, metrics.jsonl, manifest.json

A commit has a folder of its own with everything that a run goes on from; as locally, it is whole by its manifest, which is
written last. The attempt that made it is in its name: a machine that was taken for dead writes over nobody's files.
"""

import contextlib
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from pydantic import ValidationError

from vergence.platform.files import replacing, sync, write_atomic
from vergence.platform.runs import commit as commits
from vergence.platform.runs.commit import MANIFEST, STATE, Commit
from vergence.platform.runs.facts import RunFacts
from vergence.platform.runs.lease import Found, read_lock
from vergence.platform.runs.run import Run
from vergence.platform.store import NotThere, Object, Store, store_of

log = logging.getLogger(__name__)

PATIENCE_S = 10.0  # of one request: who asks goes on trying, or says so
RECIPE, FACTS, RECORDS = "recipe.resolved.yaml", "run.json", "metrics.jsonl"
_FOLDER = re.compile(r"(step-(\d{8,}))\.(\w+)")


def folder_of(commit: Commit) -> str:
    """Name of a commit's folder in a mirror."""
    return f"{commits.folder_name(commit.step)}.{commit.manifest['attempt']}"


def step_of(folder: str) -> int | None:
    """The step in the name of a commit's folder; None: it is no such name."""
    found = _FOLDER.fullmatch(folder)
    return int(found[2]) if found else None


class Remote:
    """One run in a mirror. Reading raises store.Away, UserError: the store refuses."""

    def __init__(self, mirror: str, name: str) -> None:
        self.name, self.url = name, f"{mirror.rstrip('/')}/{name}"
        self.store: Store = store_of(mirror, PATIENCE_S)

    @property
    def lock(self) -> str:
        return f"{self.url}/lock.json"

    def file(self, folder: str, name: str) -> str:
        """URL of a file of a commit."""
        return f"{self.url}/commits/{folder}/{name}"

    def holder(self) -> Found | None:
        """The lock, if a process holds it."""
        found = read_lock(self.store, self.lock)
        return None if found is None or found.is_free else found

    def folders(self) -> dict[str, dict[str, Object]]:
        """Folder of a commit -> its files, whole or not; newest first."""
        found: dict[str, dict[str, Object]] = {}
        for each in self.store.list(f"{self.url}/commits"):
            *_, folder, name = each.url.split("/")
            if step_of(folder) is not None:
                found.setdefault(folder, {})[name] = each
        return dict(sorted(found.items(), key=lambda item: (step_of(item[0]), item[0]), reverse=True))

    def whole(self) -> Iterator[Commit]:
        """Commits whose files have the sizes of their manifest, newest first; `path` is the name of the folder."""
        for folder, files in self.folders().items():
            if (commit := self._commit(folder, files)) is not None:
                yield commit

    def facts(self, commit: Commit) -> RunFacts:
        """What the run knew when it made this commit, or ended after it."""
        try:
            return RunFacts.model_validate_json(self.store.get(self.file(commit.path.name, FACTS))[0])
        except (NotThere, ValidationError):
            return RunFacts.model_validate(commit.manifest.get("run") or {})

    def fetch(self, commit: Commit, run: Run) -> bool:
        """Give a run's folder this commit, with its recipe, facts and records; whether its bytes are its manifest's.

        What followed training is made anew from the commit, so the facts forget it. OSError leaves the folder as it was,
        but for records that are cut when the run goes on.
        """
        folder = commit.path.name
        target = run.commits / commits.folder_name(commit.step)
        draft = run.commits / f".{target.name}.{run.attempt}"
        run.logs.mkdir(parents=True, exist_ok=True)
        try:
            draft.mkdir(parents=True)
            for name, about in commit.manifest["files"].items():
                if self._download(self.file(folder, name), draft / name) != about["sha256"]:
                    return False
            write_atomic(draft / MANIFEST, json.dumps(commit.manifest, indent=1))
            for name, path in ((RECIPE, run.recipe_file), (RECORDS, run.logs / RECORDS)):
                with contextlib.suppress(NotThere), replacing(path) as temporary:
                    self._download(self.file(folder, name), temporary)
            facts = self.facts(commit).but(finished=False, tracked=False, version=None)
            write_atomic(run.path / FACTS, json.dumps(facts.dump(), indent=1))
            shutil.rmtree(target, ignore_errors=True)  # what is there is not whole
            os.rename(draft, target)
            sync(run.commits)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
        return True

    def _download(self, url: str, path: Path) -> str:
        """The sha256 of what was there."""
        digest = hashlib.sha256()
        with path.open("wb") as file:
            for piece in self.store.stream(self.store.stat(url)):
                digest.update(piece)
                file.write(piece)
        sync(path)
        return digest.hexdigest()

    def _commit(self, folder: str, files: Mapping[str, Object]) -> Commit | None:
        if MANIFEST not in files:
            return None
        try:
            manifest = json.loads(self.store.get(files[MANIFEST].url)[0])
            named = manifest["files"]
            whole = STATE in named and all(files[name].size == file["bytes"] for name, file in named.items())
            whole = whole and manifest["step"] == step_of(folder)
        except (
            NotThere,
            ValueError,
            LookupError,
            TypeError,
            AttributeError,
        ):  # half written, or any other JSON
            return None
        return Commit(Path(folder), manifest) if whole else None


def runs_in(mirror: str) -> list[Remote]:
    """The runs that a mirror has anything of, by name. Raises UserError: the store cannot be listed."""
    root = mirror.rstrip("/")
    store = store_of(root, PATIENCE_S)
    below = [each.url.removeprefix(root).strip("/").split("/") for each in store.list(root)]
    signs = ("lock.json", "commits")
    return [
        Remote(root, name) for name in sorted({way[0] for way in below if len(way) > 1 and way[1] in signs})
    ]
