import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from vergence.platform.text import below_here, printable

LATIN = b"caf\xe9/\xfcber.jpg".decode("utf-8", "surrogateescape")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain ünï 日本 👨‍👩‍👧.jpg", "plain ünï 日本 👨‍👩‍👧.jpg"),
        (LATIN, r"caf\xe9/\xfcber.jpg"),
        ("two\nlines\t\0\x1b[31m\u2028", r"two\nlines\t\x00\x1b[31m\u2028"),
        ("\ud800", r"\ud800"),
    ],
)
def test_printable_is_one_line_of_utf8(text: str, expected: str) -> None:
    assert printable(text) == expected
    assert printable(text).encode().decode() == expected


@pytest.mark.parametrize("encoding", ["ascii", "utf-8", "latin-1"])
def test_a_terminal_of_any_encoding_gets_escapes_and_no_traceback(encoding: str) -> None:
    code = (
        "from vergence.platform.text import never_fail_to_print\nimport sys\nnever_fail_to_print()\n"
        f"for stream in (sys.stdout, sys.stderr): print({LATIN!r} + ' · 日', file=stream)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        env={"PYTHONIOENCODING": f"{encoding}:strict", "PYTHONPATH": ":".join(sys.path)},
    )
    expected = {
        "ascii": rb"caf\xe9/\xfcber.jpg \xb7 \u65e5",
        "latin-1": b"caf\\xe9/\\xfcber.jpg \xb7 \\u65e5",
        "utf-8": "caf\\xe9/\\xfcber.jpg · 日".encode(),
    }[encoding]
    assert (done.returncode, done.stdout.strip(), done.stderr.strip()) == (0, expected, expected)


def test_a_stream_that_is_no_terminal_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    from vergence.platform import text

    monkeypatch.setattr(sys, "stdout", io.StringIO())
    text.never_fail_to_print()


def test_paths_below_the_current_folder_are_relative_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    here = os.getcwd()
    assert below_here(f"from {here}/runs/a to {here}/b, not {here}2/c") == f"from runs/a to b, not {here}2/c"
    monkeypatch.chdir("/")
    assert below_here("/etc/hosts") == "/etc/hosts"
