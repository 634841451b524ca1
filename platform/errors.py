"""Errors that a user sees as one line, and the exit codes they end in.

VergenceError          1  the run failed
└── UserError          2  the user's mistake: what, where, got, nearest valid, what to do
"""

import difflib
from collections.abc import Iterable

from vergence.platform.masking import masked


class VergenceError(Exception):
    """Ends the command with one line on stderr, no traceback; passwords and tokens in it are masked."""

    exit_code = 1

    def __init__(self, message: str) -> None:
        super().__init__(masked(message))


class UserError(VergenceError):
    exit_code = 2


def nearest(word: str, valid: Iterable[str]) -> str:
    """`did you mean X? valid: a, b, c` for messages about a name that does not exist."""
    names = sorted(valid)
    close = difflib.get_close_matches(word, names, n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    return f"{hint}valid: {', '.join(names)}"
