"""`vergence methods`: the methods and their settings."""

import argparse
import sys
from collections.abc import Iterator
from typing import Any, get_origin

from vergence.platform.errors import UserError, nearest


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", nargs="?", help="show this method's settings")
    parser.add_argument("--settings", action="store_true", help="show all other settings of a recipe")
    parser.epilog = """\
examples:
  vergence methods byol
  vergence methods --settings"""


def main(options: argparse.Namespace) -> int:
    from vergence.methods.catalog import METHODS

    if options.settings:
        from vergence.pipelines.recipe import Recipe

        for path, field in settings(Recipe):
            print(f"{path:<28} {_about(field)}")
        return 0
    if options.name is None:
        for name, (_, method) in METHODS.items():
            print(f"{name:<14} {summary(method)}")
        return 0
    if options.name not in METHODS:
        raise UserError(f"methods: there is no method {options.name!r} ({nearest(options.name, METHODS)})")
    config, method = METHODS[options.name]
    print(f"{options.name}: {summary(method)}")
    for name, field in config.model_fields.items():
        print(f"  method.{name:<18} {_about(field)}")
    return 0


def settings(model: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted path, pydantic field) of all settings below a section, `method` left out."""
    from vergence.pipelines.recipe import section

    for name, field in model.model_fields.items():
        if name == "method":
            continue
        here, inner = f"{path}{field.alias or name}", section(field.annotation)
        if inner is None:
            yield here, field
        else:
            yield from settings(inner, f"{here}.0." if get_origin(field.annotation) is tuple else f"{here}.")


def _about(field: Any) -> str:
    default = "(required)" if field.is_required() else f"(default {field.default})"
    return f"{field.description or ''} {default}".strip()


def summary(method: type) -> str:
    """First line of the docstring of the method's module."""
    return (sys.modules[method.__module__].__doc__ or "").strip().splitlines()[0]
