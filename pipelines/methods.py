"""`vergence methods`: the methods and their settings."""

import argparse
import sys

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
        from vergence.pipelines.settings import of_recipe

        for path, setting in of_recipe().items():
            print(f"{path:<28} {setting}")
        return 0
    if options.name is None:
        wide = max(map(len, METHODS))
        for name, (_, method) in METHODS.items():
            year, family, needs = method.about
            print(f"{name:<{wide}} {year}  {family:<21} needs {needs}")
            print(f"{'':<{wide}} {summary(method)}")
        return 0
    if options.name not in METHODS:
        raise UserError(f"methods: there is no method {options.name!r} ({nearest(options.name, METHODS)})")
    from vergence.pipelines.settings import of_method

    _, method = METHODS[options.name]
    year, family, needs = method.about
    print(f"{options.name}, {year}, {family}; needs {needs}\n\n{description(method)}\n\nSettings:")
    for path, setting in of_method(options.name).items():
        print(f"  {path:<25} {setting}")
    print("\nStart from:")
    for recipe in recipes(options.name):
        print(f"  vergence pretrain {recipe}")
    return 0


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
