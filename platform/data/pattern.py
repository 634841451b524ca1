"""Which paths a pattern names: literally as far as it exists, then {a,b} and {00..09}, then *, ?, [...] and **."""

import glob
import os

import braceexpand

from vergence.platform.data.walk import folders
from vergence.platform.errors import UserError


def match(pattern: str) -> dict[str, list[str]]:
    """The files and folders that each alternative of a pattern names, sorted; an alternative may name none.

    A folder called `shards [v1]` is that folder. `**` as a whole part of the path stands for any number of folders.
    Raises UserError: an open brace, or `**` within a name.
    """
    text = os.path.expanduser(pattern)
    if os.path.lexists(text):
        return {text: [text]}
    literal, rest = _existing(text)
    return {literal + part: _below(literal, part.split("/")) for part in alternatives(rest, pattern)}


def alternatives(text: str, pattern: str | None = None) -> list[str]:
    """What {a,b} and {00..09} stand for; pattern: of which `text` is the rest. Raises UserError as `match`."""
    pattern = pattern or text
    try:
        parts = list(braceexpand.braceexpand(text))
    except ValueError:
        raise UserError(f"{pattern}: a brace is not closed; a range is {{000000..000009}}") from None
    if any("**" in part and part != "**" for part in "/".join(parts).split("/")):
        raise UserError(f"{pattern}: ** stands alone between slashes, as in FOLDER/**/*.tar")
    return parts


def _existing(text: str) -> tuple[str, str]:
    """The longest beginning, up to a slash, that exists; and the rest."""
    literal, rest = "", text
    while "/" in rest:
        part, _, after = rest.partition("/")
        if not os.path.lexists(f"{literal}{part}/"):
            break
        literal, rest = f"{literal}{part}/", after
    return literal, rest


def _below(base: str, parts: list[str]) -> list[str]:
    """Paths that `parts` name below `base`, which is empty or ends in a slash."""
    part, *others = parts
    if part == "**":
        bases = folders(base)
    elif os.path.lexists(base + part):
        bases = [f"{base}{part}/"]
    else:
        bases = [f"{name}/" for name in sorted(glob.glob(glob.escape(base) + part))]
    if not others:
        return [name[:-1] for name in bases]
    return [name for below in bases if os.path.isdir(below) for name in _below(below, others)]
