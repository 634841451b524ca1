"""`vergence methods`: the methods and their settings."""

import argparse
import sys

from vergence.pipelines.shipped import shipped
from vergence.platform.errors import UserError, nearest


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "name", metavar="NAME", nargs="?", help="show this method's equation, sources, settings and recipes"
    )
    parser.add_argument(
        "--settings",
        action="store_true",
        help="show all other settings of a recipe (with NAME: those, and its own)",
    )
    parser.epilog = """\
examples:
  vergence methods byol
  vergence methods --settings"""


def main(options: argparse.Namespace) -> int:
    from vergence.methods.catalog import METHODS

    name = options.name
    if name is not None and name not in METHODS:
        raise UserError(f"methods: there is no method {name!r} ({nearest(name, METHODS)})")
    if options.settings:
        _print_settings(name)
    elif name is not None:
        _print_one(name)
    else:
        _print_all()
    return 0


def _print_settings(name: str | None) -> None:
    from vergence.pipelines.settings import of_method, of_recipe

    own = of_method(name) if name else {}
    for path, setting in {**own, **of_recipe()}.items():
        print(f"{path:<28} {setting}")


def _print_one(name: str) -> None:
    from vergence.methods.catalog import METHODS
    from vergence.pipelines.settings import of_method

    _, method = METHODS[name]
    year, family, needs = method.about
    print(f"{name}, {year}, {family}; needs {needs}\n\n{description(method)}\n\nSettings:")
    for path, setting in of_method(name).items():
        print(f"  {path:<25} {setting}")
    print("\nStart from:")
    for recipe in recipes(name):
        print(f"  vergence pretrain {recipe}")


def _print_all() -> None:
    from vergence.methods.catalog import METHODS

    wide = max(map(len, METHODS))
    for name, (_, method) in METHODS.items():
        year, family, needs = method.about
        print(f"{name:<{wide}} {year}  {family:<21} needs {needs}")
        print(f"{'':<{wide}} {summary(method)}")


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
