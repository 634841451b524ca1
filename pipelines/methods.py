"""`vergence methods`: the methods and their settings."""

import argparse
import sys
from collections.abc import Iterator
from typing import Any, get_origin

from vergence.pipelines.shipped import shipped
from vergence.platform.errors import UserError, nearest


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "name", metavar="NAME", nargs="?", help="show this method's equation, sources, settings and recipes"
    )
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
            year, family, needs = method.about
            print(f"{name:<14} {year}  {family:<21} needs {needs}")
            print(f"{'':<14} {summary(method)}")
        return 0
    if options.name not in METHODS:
        raise UserError(f"methods: there is no method {options.name!r} ({nearest(options.name, METHODS)})")
    config, method = METHODS[options.name]
    year, family, needs = method.about
    print(f"{options.name}, {year}, {family}; needs {needs}\n\n{description(method)}\n\nSettings:")
    for name, field in config.model_fields.items():
        print(f"  method.{name:<18} {_about(field)}")
    print("\nStart from:")
    for recipe in recipes(options.name):
        print(f"  vergence pretrain {recipe}")
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


def description(method: type) -> str:
    """The docstring of the method's module: equation, sources, what to tune first."""
    return (sys.modules[method.__module__].__doc__ or "").strip()


def summary(method: type) -> str:
    """Its first line."""
    return description(method).splitlines()[0]


def recipes(name: str) -> list[str]:
    """Shipped recipes of a method."""
    from vergence.pipelines.recipe import load_recipe

    return [recipe for recipe in shipped("recipe") if load_recipe(recipe).method.name == name]
