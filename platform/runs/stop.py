"""A wish that a run stops: it commits and returns."""

import contextlib
from collections.abc import Callable, Iterator


class Stop:
    """Given to a run; any thread, or a signal handler, may ask. Asked before the first step, the run just returns."""

    def __init__(self) -> None:
        self.is_asked = False
        self._passes_on: Callable[[], None] | None = None

    @property
    def is_heard(self) -> bool:
        """Whether a run listens now."""
        return self._passes_on is not None

    def ask(self) -> None:
        """May be called again; the run returns within a step and the time of a commit."""
        self.is_asked = True
        if self._passes_on is not None:
            self._passes_on()

    @contextlib.contextmanager
    def heard(self, passes_on: Callable[[], None]) -> Iterator[None]:
        """Around a run: `passes_on` is called, on the thread that asks, as soon as somebody asks or has asked."""
        assert self._passes_on is None, "a Stop stops one run at a time"
        self._passes_on = passes_on
        try:
            if self.is_asked:
                passes_on()
            yield
        finally:
            self._passes_on = None
