"""The settings of a recipe: their paths, types, allowed values, meaning, and the YAML in which they are told."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from pydantic import BaseModel

from vergence.methods.catalog import METHODS
from vergence.pipelines.recipe import Recipe, section
from vergence.platform import yaml

FAR = 1e9  # bounds beyond it bound nobody
REMARKS_AT = 44  # column at which what is said of a setting stands beside it


class Setting(NamedTuple):
    kind: str  # its type and allowed values: `int > 0`, `sgd | adamw | lars`
    default: str  # as YAML; "" if it must be given
    meaning: str

    def __str__(self) -> str:
        default = f"(default {self.default})" if self.default else "(required)"
        return " ".join(filter(None, [f"{self.kind}.", self.meaning, default]))


def settings_of(model: type[BaseModel], path: str = "") -> dict[str, Setting]:
    """All settings of a section and those below, by dotted path; items of a list have the place 0."""
    properties, found = model.model_json_schema()["properties"], dict[str, Setting]()
    for name, field in model.model_fields.items():
        key = field.alias or name
        inner, kinds = section(field.annotation), _kinds(properties[key])
        if inner is not None and set(kinds) <= {"mapping", "list", "null"}:
            if "null" in kinds:
                found[f"{path}{key}"] = Setting("section | null", "null", field.description or "")
            items = "0." if kinds == ["list"] else ""
            found |= settings_of(inner, f"{path}{key}.{items}")
        else:
            default = "" if field.is_required() else yaml.dump_inline(properties[key].get("default"))
            found[f"{path}{key}"] = Setting(" | ".join(kinds), default, field.description or "")
    return found


def of_recipe() -> dict[str, Setting]:
    """All settings of a recipe but the method's own."""
    return {
        path: setting for path, setting in settings_of(Recipe).items() if path.partition(".")[0] != "method"
    }


def of_method(name: str) -> dict[str, Setting]:
    """A method's own."""
    return settings_of(METHODS[name][0], "method.")


def _kinds(schema: Mapping[str, Any]) -> list[str]:
    """Of a field, from its JSON schema: each of the forms in which it may be given."""
    if "enum" in schema:
        return [" | ".join(map(str, schema["enum"]))]
    if "const" in schema:
        return [yaml.dump_inline(schema["const"])]
    if forms := schema.get("anyOf", schema.get("oneOf")):
        return [kind for form in forms for kind in _kinds(form)]
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return ["{start, peak, end, warmup_epochs, shape, steps}" if name == "Schedule" else "mapping"]
    match schema.get("type"):
        case "array" if "prefixItems" in schema:
            return [f"[{', '.join(' | '.join(_kinds(item)) for item in schema['prefixItems'])}]"]
        case "array":
            return ["list" if "$ref" in schema["items"] else f"list of {' | '.join(_kinds(schema['items']))}"]
        case "boolean":
            return ["true | false"]
        case "integer" | "number" as kind:
            return [f"{'int' if kind == 'integer' else 'float'}{_bounds(schema)}"]
        case kind:
            return [{"string": "word"}.get(str(kind), str(kind))]


def _bounds(schema: Mapping[str, Any]) -> str:
    signs = {"exclusiveMinimum": ">", "minimum": ">=", "exclusiveMaximum": "<", "maximum": "<="}
    told = [f"{sign} {schema[key]:g}" for key, sign in signs.items() if abs(schema.get(key, FAR)) < FAR]
    return f" {', '.join(told)}" if told else ""


def commented(
    recipe: Mapping[str, Any], remark: Callable[[str], str], off: Callable[[str, Any], bool] | None = None
) -> str:
    """A recipe as YAML, with what `remark` says of a dotted path beside it.

    off: says of a path and its value that the line is to be a comment itself; a section without any other line too.
    """
    return "".join(f"{line}\n" for line in _lines(recipe, "", "", remark, off or (lambda path, value: False)))


def _lines(
    node: Mapping[str, Any],
    path: str,
    indent: str,
    remark: Callable[[str], str],
    off: Callable[[str, Any], bool],
) -> Iterator[str]:
    for key, value in node.items():
        here = f"{path}{key}"
        if isinstance(value, Mapping) and value:
            below = list(_lines(value, f"{here}.", f"{indent}  ", remark, off))
            yield (
                _off(f"{indent}{key}:") if all(line.startswith("#") for line in below) else f"{indent}{key}:"
            )
            yield from below
        elif isinstance(value, list) and value and isinstance(value[0], Mapping):
            yield f"{indent}{key}:"
            for i, item in enumerate(value):
                yield from _item(list(_lines(item, f"{here}.{i}.", f"{indent}    ", remark, off)), indent)
        else:
            text = f"{indent}{key}: {yaml.dump_inline(value)}"
            line = _off(text) if off(here, value) else text
            said = remark(here)
            yield f"{line:<{REMARKS_AT}}  # {said}" if said else line


def _item(lines: list[str], indent: str) -> Iterator[str]:
    """The lines of an item of a list: the first that is no comment begins with the dash."""
    first = next(i for i, line in enumerate(lines) if not line.startswith("#"))
    dashed = f"{indent}  - {lines[first][len(indent) + 4 :]}"
    yield from [dashed, *lines[:first], *lines[first + 1 :]]


def _off(line: str) -> str:
    return f"# {line}"
