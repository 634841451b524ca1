import io
import subprocess
import sys

import pytest

from vergence.platform.text import printable

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
