"""A progress bar on stderr for the slow verbs."""

import time
from collections.abc import Callable

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn


class Bar:
    """Counts up to `total`; drawn after 2 s in a terminal, elsewhere one line at the end of such a wait.

    As a context manager: `with Bar("reading", 100, enabled=True) as advance: advance(10)`.
    """

    def __init__(self, what: str, total: int, *, enabled: bool, after_s: float = 2.0) -> None:
        self.what, self.total, self.enabled, self.after_s = what, total, enabled, after_s
        self.done = 0
        self.console = Console(stderr=True)
        self.progress: Progress | None = None

    def __enter__(self) -> Callable[[int], None]:
        self.start_s = time.monotonic()
        return self._advance

    def _advance(self, count: int) -> None:
        self.done += count
        if self.enabled and self.console.is_terminal and time.monotonic() - self.start_s > self.after_s:
            if self.progress is None:
                self.progress = _drawn(self.what, self.total, self.console)
            self.progress.update(TaskID(0), completed=self.done)

    def __exit__(self, *error: object) -> None:
        elapsed_s = time.monotonic() - self.start_s
        if self.progress is not None:
            self.progress.stop()
        if self.enabled and elapsed_s > self.after_s:
            line = f"{self.what}: {self.done:,} of {self.total:,} in {elapsed_s:.1f} s"
            self.console.print(line, highlight=False, markup=False, soft_wrap=True)


def _drawn(what: str, total: int, console: Console) -> Progress:
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    progress = Progress(*columns, console=console, transient=True)
    progress.add_task(what, total=total)
    progress.start()
    return progress
