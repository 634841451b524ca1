"""Who may ask."""

import pytest

from vergence.platform.errors import UserError
from vergence.platform.serve.bearer import TOKEN, admits, token_digest


def test_only_the_token_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TOKEN, "se cret ü\n")
    digest = token_digest()
    assert digest is not None
    assert b"cret" not in digest
    assert admits("Bearer se cret ü", digest)
    assert admits("bearer  se cret ü ", digest)
    for wrong in ("", "Bearer", "Bearer ", "Bearer se cret", "Basic se cret ü", "se cret ü"):
        assert not admits(wrong, digest)


def test_without_a_token_all_pass_and_an_empty_one_is_a_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(TOKEN, raising=False)
    assert token_digest() is None
    assert admits("", None)
    monkeypatch.setenv(TOKEN, " ")
    with pytest.raises(UserError, match="set and empty"):
        token_digest()
