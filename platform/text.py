"""Text that can be written anywhere: file names are bytes on Linux, and need be neither UTF-8 nor one line."""

import codecs
import os
import re
import sys
from io import TextIOWrapper

# control characters, line ends, and what stands for a byte that is no UTF-8 (PEP 383)
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def printable(text: str) -> str:
    """The text on one line and encodable: a byte that is no UTF-8 as \\xe9, a line end as \\n."""
    return _UNSAFE.sub(lambda match: _escape(match.group()), text)


def never_fail_to_print() -> None:
    """What a terminal's encoding lacks is printed as an escape; Python would end with a traceback."""
    codecs.register_error("escape", lambda error: (_escaped_ascii(error), error.end))  # type: ignore[attr-defined]
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="escape")


def _escape(character: str) -> str:
    if "\udc80" <= character <= "\udcff":
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode("ascii")


def _escaped_ascii(error: Exception) -> str:
    assert isinstance(error, UnicodeEncodeError)
    return "".join(map(_escape, error.object[error.start : error.end]))


def below_here(line: str) -> str:
    """With paths below the current folder relative to it."""
    here = os.path.join(os.getcwd(), "")
    return line if here == os.sep else line.replace(here, "")
