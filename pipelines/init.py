"""`vergence init`: a recipe to change, with the meaning and the choices of each setting beside it."""

import argparse
from pathlib import Path
from typing import Any

from vergence.pipelines.shipped import file_of, shipped
from vergence.platform.errors import UserError

START = "images-small"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "name", metavar="NAME", nargs="?", help="write NAME.yaml; without it the recipe is printed"
    )
    parser.add_argument(
        "--from",
        dest="source",
        default=START,
        metavar="RECIPE",
        help=f"start from this one (default {START})",
    )
    parser.epilog = f"""\
examples:
  vergence init mine                          mine.yaml, for photographs of your own
  vergence init mine --from byol-cifar10
  vergence init > my.yaml
  vergence pretrain mine.yaml data.train=shards/ --dry-run

Shipped recipes: {", ".join(shipped("recipe"))}"""


def main(options: argparse.Namespace) -> int:
    text = init(options.source)
    if options.name is None:
        print(text, end="")
        return 0
    file = Path(options.name if options.name.endswith((".yaml", ".yml")) else f"{options.name}.yaml")
    if file.stem in shipped("recipe"):
        raise UserError(
            f"init {options.name}: is the name of a shipped recipe; to start from it: vergence init NEW --from {file.stem}"
        )
    try:
        with file.open("x", encoding="utf-8") as stream:
            stream.write(text)
    except FileExistsError:
        raise UserError(f"init: {file} is there already; choose another NAME or delete it") from None
    print(f"{file}: from {options.source}; next: vergence pretrain {file} data.train=SHARDS --dry-run")
    return 0


def init(source: str) -> str:
    """A recipe's YAML with all settings. Those that a preset or the machine fills are comments."""
    from vergence.pipelines.recipe import load_recipe
    from vergence.pipelines.settings import commented, of_method, of_recipe

    recipe, name = load_recipe(source), file_of("recipe", source).stem
    known = of_recipe() | of_method(recipe.method.name)
    dumped = recipe.dump()
    del dumped["schema"]

    def remark(path: str) -> str:
        if path == "method.name":
            return "another one has other settings: `vergence methods`, `vergence init --from`"
        setting = known.get(_any_item(path))
        return "" if setting is None else f"{setting.kind}. {setting.meaning}".strip()

    def off(path: str, value: Any) -> bool:
        return value is None and path != "track.register"

    head = (
        f"# From {name}. Every setting, with its type and choices beside it; one that is left out or a comment has its\n"
        f"# default, or the value of the preset of views. About the method: vergence methods {recipe.method.name}\n"
    )
    return head + commented(dumped, remark, off)


def _any_item(path: str) -> str:
    """The path with the place 0 for every place in a list."""
    return ".".join("0" if part.isdigit() else part for part in path.split("."))
