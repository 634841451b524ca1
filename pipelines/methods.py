"""`vergence methods`: the methods and their settings."""

import argparse


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", nargs="?", help="show this method's settings")


def main(options: argparse.Namespace) -> int:
    from vergence.methods.catalog import METHODS
    from vergence.platform.errors import UserError, nearest

    if options.name is None:
        for name, (_, method) in METHODS.items():
            print(f"{name:<14} {summary(method)}")
        return 0
    if options.name not in METHODS:
        raise UserError(f"methods: there is no method {options.name!r} ({nearest(options.name, METHODS)})")
    config, method = METHODS[options.name]
    print(f"{options.name}: {summary(method)}")
    for name, field in config.model_fields.items():
        default = "" if field.is_required() else f" (default {field.default})"
        print(f"  method.{name:<18} {field.description or ''}{default}")
    return 0


def summary(method: type) -> str:
    """First line of the docstring of the method's module."""
    import sys

    return (sys.modules[method.__module__].__doc__ or "").strip().splitlines()[0]
