"""No wait is silent: what a run waits for is said after some seconds, then ever more rarely."""

import time
from collections.abc import Callable

FIRST_S = 10.0


class Waiting:
    """Call `look` often while nothing moves; it asks for the reason, and says it, only when that is due."""

    def __init__(self, says: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self.says, self.clock = says, clock
        self._start_again()

    def _start_again(self) -> None:
        self.since_s, self.pause_s = self.clock(), FIRST_S

    def look(self, reason: Callable[[], str | None]) -> None:
        """Say `reason()` if it is due; None says that there is nothing to wait for, and the count starts again."""
        waited_s = self.clock() - self.since_s
        if waited_s < self.pause_s:
            return
        why = reason()
        if why is None:
            self._start_again()
        else:
            self.says(f"{why} (for {waited_s:.0f} s)")
            self.pause_s = 2 * waited_s
