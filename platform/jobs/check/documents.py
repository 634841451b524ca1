"""Manifests from files and folders, as the API server would get them."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from vergence.platform.errors import UserError
from vergence.platform.jobs.check.finding import Document

KUSTOMIZATION = ("kustomization.yaml", "kustomization.yml", "Kustomization")
MANIFEST = (".yaml", ".yml", ".json")


class Bundle(NamedTuple):
    """What is applied together; references are looked up inside it."""

    where: str
    documents: list[Document]


class _Loader(yaml.SafeLoader):
    pass


# a label that looks like a date stays a word
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    """Refuses what the server would silently take the last of."""
    nodes = [key for key, _ in node.value]
    keys = [str(key.value) for key in nodes]
    for i, key in enumerate(keys):
        if key in keys[:i]:
            problem = f"the key {key!r} stands twice"
            raise yaml.constructor.ConstructorError(None, None, problem, nodes[i].start_mark)
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor("tag:yaml.org,2002:map", _mapping)


def bundles(path: Path) -> list[Bundle]:
    """The bundles of a file or folder.

    A folder with a kustomization is built; one with kustomizations somewhere below it gives a bundle for each; in any other
    all manifests below it are one bundle. Raises UserError: nothing there, no YAML, a kustomization that does not build.
    """
    if path.is_file():
        return [Bundle(str(path), parse(path.read_text(encoding="utf-8"), str(path)))]
    if not path.is_dir():
        raise UserError(f"{path}: no such file or folder of manifests")
    roots = sorted({found.parent for name in KUSTOMIZATION for found in path.rglob(name)})
    if path in roots:
        roots = [path]
    if roots:
        return [Bundle(str(root), parse(build(root), str(root))) for root in roots]
    files = sorted(file for file in path.rglob("*") if file.suffix in MANIFEST and file.is_file())
    if not files:
        raise UserError(f"{path}: no manifests (*.yaml, *.yml, *.json) and no kustomization in this folder")
    documents = [each for file in files for each in parse(file.read_text(encoding="utf-8"), str(file))]
    return [Bundle(str(path), documents)]


def build(root: Path) -> str:
    """What `kubectl kustomize` makes of a folder. Raises UserError."""
    if shutil.which("kubectl") is None:
        raise UserError(
            f"{root}: is a kustomization and needs kubectl >= 1.27 to be built; install it, or give the file that "
            "`kubectl kustomize` made elsewhere"
        )
    done = subprocess.run(["kubectl", "kustomize", str(root)], capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"{root}: does not build: {done.stderr.strip().removeprefix('error: ')}")
    return done.stdout


def parse(text: str, where: str) -> list[Document]:
    """The objects of a YAML or JSON text, lists of kind List opened. Raises UserError."""
    try:
        values = [_without_nulls(value) for value in yaml.load_all(text, Loader=_Loader)]
        json.dumps(values)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise UserError(f"{where}: line {line}: {error.problem}") from None
    except (yaml.YAMLError, TypeError, ValueError) as error:
        raise UserError(f"{where}: not YAML of a manifest: {str(error).splitlines()[0]}") from None
    documents = []
    for value in values:
        if value is None:
            continue
        if not isinstance(value, dict):
            raise UserError(f"{where}: a manifest is a mapping, got {type(value).__name__}")
        items = value.get("items") if value.get("kind") == "List" else [value]
        documents += [Document(where, item) for item in items or [] if isinstance(item, dict)]
    return documents


def _without_nulls(value: Any) -> Any:
    """Without the keys whose value is null, which the server drops."""
    if isinstance(value, dict):
        return {key: _without_nulls(inner) for key, inner in value.items() if inner is not None}
    if isinstance(value, list):
        return [_without_nulls(inner) for inner in value]
    return value
