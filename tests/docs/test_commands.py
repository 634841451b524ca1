"""What README and docs tell a reader to type is understood: every command's options, every recipe's settings."""

import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from vergence.pipelines import cli
from vergence.pipelines.recipe import Recipe, load_recipe
from vergence.pipelines.shipped import shipped
from vergence.platform import yaml

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
COMMAND = re.compile(r"^(?:\$ )?(?:\.venv/bin/)?vergence ((?:-|[a-z]).*)$", re.MULTILINE)


def commands(text: str) -> Iterator[list[str]]:
    """The words after `vergence` of each command in a page's blocks of code, up to what is the shell's."""
    for kind, body in BLOCK.findall(text):
        if kind not in ("", "sh", "console"):
            continue
        for line in COMMAND.findall(body.replace("\\\n", " ")):
            lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
            lexer.whitespace_split = True
            words = list(lexer)
            ends = [i for i, word in enumerate(words) if set(word) <= set("|>&;<")]
            yield words[: min(ends, default=len(words))]


@pytest.fixture
def parsed_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Verbs do nothing once their options are understood."""
    for module, _ in cli.VERBS.values():
        verb = importlib.import_module(f"vergence.pipelines.{module}")
        monkeypatch.setattr(verb, "main", lambda options: 0)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_is_understood(page: Path, parsed_only: None) -> None:
    for words in commands(page.read_text()):
        try:
            assert cli.main(words) == 0
        except SystemExit as end:
            pytest.fail(f"{page.name}: vergence {' '.join(words)}: exit code {end.code}")
        if words[:1] == ["pretrain"] and words[1] in shipped("recipe"):
            load_recipe(words[1], [word for word in words[2:] if re.match(r"[a-z][\w.]*=", word)])


def test_an_option_that_is_gone_would_be_noticed(parsed_only: None) -> None:
    page = "```\n.venv/bin/vergence embed mine shards/ vectors.parquet --gone 3 > log  # why\n```\n"
    (words,) = commands(page)
    assert words == ["embed", "mine", "shards/", "vectors.parquet", "--gone", "3"]
    with pytest.raises(SystemExit):
        cli.main(words)


def test_the_recipe_in_the_readme_is_one() -> None:
    (text,) = (body for kind, body in BLOCK.findall(PAGES[0].read_text()) if kind == "yaml")
    assert Recipe.parse(yaml.parse(text, "README.md"), "README.md").method.name == "simclr"
