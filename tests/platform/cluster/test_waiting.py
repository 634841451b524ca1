from vergence.platform.cluster.waiting import Waiting


def test_a_wait_is_said_after_10_s_and_then_ever_more_rarely() -> None:
    said: list[str] = []
    now = [0.0]
    waiting = Waiting(said.append, clock=lambda: now[0])
    for second in range(100):
        now[0] = float(second)
        waiting.look(lambda: "no room")
    assert said == ["no room (for 10 s)", "no room (for 20 s)", "no room (for 40 s)", "no room (for 80 s)"]


def test_what_moves_is_silent_asks_rarely_and_counts_anew() -> None:
    said: list[str] = []
    asked, now = [], [0.0]

    def reason() -> str | None:
        asked.append(now[0])
        return "no room" if 45 <= now[0] < 70 else None

    waiting = Waiting(said.append, clock=lambda: now[0])
    for second in range(100):
        now[0] = float(second)
        waiting.look(reason)
    assert said == ["no room (for 10 s)", "no room (for 20 s)"]
    assert len(asked) <= 10
