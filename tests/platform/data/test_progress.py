import pytest

from vergence.platform.data.progress import Bar


def test_quick_work_and_disabled_bars_print_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    with Bar("reading", 3, enabled=True) as advance:
        advance(3)
    with Bar("reading", 3, enabled=False, after_s=0) as advance:
        advance(3)
    assert capfd.readouterr() == ("", "")


def test_slow_work_ends_in_one_line_outside_a_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    with Bar("reading", 4000, enabled=True, after_s=0) as advance:
        advance(1500)
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("reading: 1,500 of 4,000 in 0.0 s")
    assert err.count("\n") == 1


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    with Bar("reading [x]", 4, enabled=True, after_s=0) as advance:
        for _ in range(4):
            advance(1)
    assert "4/4" in capfd.readouterr().err
