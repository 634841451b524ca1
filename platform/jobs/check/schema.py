"""The shape of an object: closed schemas of custom resources with their CEL rules, and the schemas of core kinds."""

import copy
import difflib
import json
from collections.abc import Iterator
from functools import cache
from importlib import resources
from importlib.util import find_spec
from typing import Any

from vergence.platform.errors import UserError
from vergence.platform.jobs.check.finding import Document, Finding, Findings

OURS = {"ray.io": "v1", "kueue.x-k8s.io": "v1beta2"}  # group -> the version that our schemas are of
CORE = "v1.37.0-local-strict"
PIP = "pip install 'vergence[k8s]'"


def installed() -> None:
    """UserError, with the line for pip, unless all that checks is there."""
    if any(find_spec(name) is None for name in ("celpy", "jsonschema", "kubernetes_validate")):
        raise UserError(f"checking manifests needs an extra: {PIP}")


def shape(document: Document) -> Findings:
    """Every difference between an object and the schema of its kind; kinds that nobody here knows are a finding."""
    version = OURS.get(document.group)
    if version is None:
        yield from core_shape(document.value)
        return
    wanted = f"{document.group}/{version}"
    if document.value["apiVersion"] != wanted:
        yield Finding(
            "apiVersion",
            "schema",
            f"{document.value['apiVersion']} is not served by the operators that this was written for",
            f"write {wanted}",
        )
        return
    schema = _custom(document.group, version, document.kind)
    if schema is None:
        yield _unknown(document.value, [name.rpartition("_")[2] for name in _custom_names()])
        return
    differences = list(
        _differences(_validator(document.group, version, document.kind), document.value, "schema")
    )
    yield from differences
    if not differences:
        whole = copy.deepcopy(document.value)
        _fill_in(schema, schema, whole)
        yield from _cel(schema, schema, whole, "")


def core_shape(value: dict[str, Any], root: str = "") -> Findings:
    """Differences from Kubernetes' own schema; misspelt fields are some. root: path of the object in its file."""
    validator = _core_validator(str(value.get("apiVersion")), str(value.get("kind")))
    if validator is None:
        yield _unknown(value, _core_kinds())
        return
    yield from _differences(validator, value, "core-schema", root)


def _unknown(value: dict[str, Any], kinds: list[str]) -> Finding:
    kind = f"{value.get('apiVersion')} {value.get('kind')}"
    close = difflib.get_close_matches(str(value.get("kind")).lower(), kinds, n=1)
    hint = (
        f"did you mean {close[0]}?"
        if close
        else "check its apiVersion and kind, or leave it out of the bundle"
    )
    return Finding("kind", "unknown-kind", f"there is no schema of {kind} here", hint)


def _differences(validator: Any, value: Any, rule: str, root: str = "") -> Findings:
    for error in sorted(validator.iter_errors(value), key=lambda error: list(map(str, error.absolute_path))):
        yield from _explain(error, rule, root)


def _explain(error: Any, rule: str, root: str) -> Findings:
    """One finding for a difference, several for several unknown fields."""
    path = joined(root, error.absolute_path)
    if error.validator == "additionalProperties" and error.validator_value is False:
        valid = list(error.schema.get("properties", {}))
        for key in sorted(set(error.instance) - set(valid)):
            close = difflib.get_close_matches(key, valid, n=1) or [
                name for name in valid if name.lower() == key.lower()
            ]
            hint = f"did you mean {close[0]}?" if close else f"valid: {', '.join(sorted(valid))}"
            yield Finding(joined(path, [key]), rule, "no such field", hint)
        return
    if error.validator == "required":
        key = error.message.split("'")[1]  # one error a key
        yield Finding(joined(path, [key]), rule, "missing", "write it")
        return
    got = json.dumps(error.instance)
    got = got if len(got) <= 60 else got[:57] + "..."
    yield Finding(path or ".", rule, f"got {got}", _expected(error))


def _expected(error: Any) -> str:
    wanted = error.validator_value
    if error.validator == "type":
        types = wanted if isinstance(wanted, list) else [wanted]
        quoted = (
            f', e.g. "{error.instance}"'
            if types == ["string"] and not isinstance(error.instance, (dict, list))
            else ""
        )
        return f"write a value of type {' or '.join(types)}{quoted}"
    if error.validator == "enum":
        return f"valid: {', '.join(map(str, wanted))}"
    if error.validator == "const":
        return f"write {wanted}"
    if error.validator == "pattern" and "numkMGTPE" in str(wanted):
        return "write a quantity such as 500m, 2 or 8Gi"
    if error.validator in ("anyOf", "oneOf"):
        types = [str(each.get("type")) for each in wanted if "type" in each]
        return f"write a value of type {' or '.join(types)}" if types else "none of its forms fits"
    return f"it must satisfy {error.validator} {json.dumps(wanted)[:80]}"


def joined(root: str, parts: Any) -> str:
    """A path with keys after dots and positions in brackets."""
    text = root
    for part in parts:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


# --- the schemas of custom resources


@cache
def _custom_names() -> list[str]:
    folder = resources.files("vergence.platform.jobs.check") / "schemas"
    return sorted(file.name.removesuffix(".json") for file in folder.iterdir() if file.name.endswith(".json"))


@cache
def _custom(group: str, version: str, kind: str) -> Any:
    name = f"{group}_{version}_{kind.lower()}"
    if name not in _custom_names():
        return None
    file = resources.files("vergence.platform.jobs.check") / "schemas" / f"{name}.json"
    return json.loads(file.read_text(encoding="utf-8"))


@cache
def _validator(group: str, version: str, kind: str) -> Any:
    from jsonschema import Draft202012Validator

    return Draft202012Validator(_custom(group, version, kind))


def _cel(schema: Any, node: Any, value: Any, path: str) -> Findings:
    """What breaks the CEL rules of the schema at and below a value."""
    node = _followed(schema, node)
    for rule in node.get("x-kubernetes-validations", []):
        if "oldSelf" not in rule["rule"] and not _holds(rule["rule"], value):
            yield Finding(
                path or ".", "CEL", rule.get("message", rule["rule"]), f"it must satisfy {rule['rule']}"
            )
    for step, inner, below in _children(node, value):
        yield from _cel(schema, inner, below, joined(path, [step]))


def _fill_in(schema: Any, node: Any, value: Any) -> None:
    """Add the defaults at and below a value, as the server does before it looks at rules."""
    node = _followed(schema, node)
    for key, inner in node.get("properties", {}).items() if isinstance(value, dict) else ():
        default = _followed(schema, inner).get("default")
        if key not in value and default is not None:
            value[key] = copy.deepcopy(default)
    for _, inner, below in _children(node, value):
        _fill_in(schema, inner, below)


def _children(node: Any, value: Any) -> Iterator[tuple[str | int, Any, Any]]:
    if isinstance(value, dict):
        others = node.get("additionalProperties")
        for key, below in value.items():
            inner = node.get("properties", {}).get(key, others if isinstance(others, dict) else None)
            if inner is not None:
                yield key, inner, below
    elif isinstance(value, list) and "items" in node:
        for i, below in enumerate(value):
            yield i, node["items"], below


def _followed(schema: Any, node: Any) -> Any:
    while isinstance(node, dict) and "$ref" in node:
        node = schema["$defs"][node["$ref"].rpartition("/")[2]]
    return node


@cache
def _program(rule: str) -> Any:
    import celpy

    environment = celpy.Environment()
    return environment.program(environment.compile(rule))


def _holds(rule: str, value: Any) -> bool:
    from celpy.adapter import json_to_cel
    from celpy.evaluation import CELEvalError

    try:
        return bool(_program(rule).evaluate({"self": json_to_cel(value)}))
    except CELEvalError:
        return False  # the server refuses what a rule cannot be evaluated for


# --- the schemas of core kinds, which come with kubernetes-validate


@cache
def _core_folder() -> Any:
    return resources.files("kubernetes_validate") / "kubernetes-json-schema" / CORE


@cache
def _core_kinds() -> list[str]:
    return sorted({file.name.partition("-")[0] for file in _core_folder().iterdir() if file.name[0] != "_"})


@cache
def _core_registry() -> Any:
    from referencing import Registry, Resource

    text = (_core_folder() / "_definitions.json").read_text(encoding="utf-8")
    return Resource.from_contents(json.loads(text)) @ Registry()


@cache
def _core_validator(api_version: str, kind: str) -> Any:
    """The validator of a kind; None if Kubernetes has no such kind."""
    group, slash, version = api_version.rpartition("/")
    name = f"{kind.lower()}-{group.partition('.')[0]}{'-' if slash else ''}{version}.json"
    file = _core_folder() / name
    if "/" in name or not file.is_file():
        return None
    from jsonschema import Draft202012Validator
    from referencing import Resource

    schema = json.loads(file.read_text(encoding="utf-8"))
    registry = Resource.from_contents(schema) @ _core_registry()
    return Draft202012Validator(schema, registry=registry)
