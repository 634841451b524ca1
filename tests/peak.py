"""Peak memory of a block of code, by the kernel's own count."""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

M_MMAP_THRESHOLD = -3  # malloc.h


class Peak:
    above = 0  # bytes above what was resident when the block began


@contextmanager
def peak_bytes() -> Iterator[Peak]:
    """Measures this process, files that it maps included."""
    peak = Peak()
    ctypes.CDLL(None).mallopt(
        M_MMAP_THRESHOLD, 1 << 20
    )  # what is larger goes back to the kernel when it is freed
    Path("/proc/self/clear_refs").write_text("5")  # proc_pid_clear_refs(5): the high-water mark starts anew
    before = _status("VmRSS")
    yield peak
    peak.above = _status("VmHWM") - before


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(f"{name}:"))
