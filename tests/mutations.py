"""Do the tests notice? One fault at a time is put into a copy of the packages, and the named test must go red.

    python tests/mutations.py [NAME...] [--jobs 2]

The faults are in tests/mutants/; NAME is a fault or a file of the packages, default all. Exit code 1 if a fault
survives, if a text to be changed does not occur exactly once, or if a named test is red without any fault.
"""

import argparse
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import NamedTuple

# before torch: forked ranks hang in a pool of threads that their parent has used
os.environ["OMP_NUM_THREADS"] = "1"

from mutants import MUTANTS
from ranks import import_deepspeed

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("platform", "methods", "pipelines")
LIMIT_S = 180.0  # a fault may make ranks wait for each other without end
GREEN, RED = 0, 1  # pytest's exit codes; any other means that the test did not run
# a plugin of pytest's that what is slow imports before it
_IMPORTED = ("-W", "ignore::pytest.PytestAssertRewriteWarning")


class Mutant(NamedTuple):
    name: str
    file: str  # below the root
    old: str
    new: str
    test: str  # pytest's name of it


def all_mutants() -> list[Mutant]:
    return [Mutant(name, file, *fault) for file, faults in MUTANTS.items() for name, fault in faults.items()]


def chosen(names: Sequence[str]) -> list[Mutant]:
    """The mutants with these names, or of these files, or all; SystemExit for a name that there is not."""
    mutants = all_mutants()
    unknown = set(names) - {mutant.name for mutant in mutants} - set(MUTANTS)
    if unknown:
        sys.exit(f"no such mutant: {', '.join(sorted(unknown))}; see tests/mutants/")
    return [mutant for mutant in mutants if not names or mutant.name in names or mutant.file in names]


def stale(mutants: Iterable[Mutant]) -> list[str]:
    """Mutants whose text is not there exactly once, as messages."""
    found = ((mutant, (ROOT / mutant.file).read_text().count(mutant.old)) for mutant in mutants)
    return [
        f"{mutant.name}: its text is {times} times in {mutant.file}" for mutant, times in found if times != 1
    ]


def import_what_is_slow() -> None:
    """Packages of others, once for all forks; nothing of ours, which each fork takes from a copy of its own."""
    shim = spec_from_file_location("shim", ROOT / "methods" / "torchvision_shim.py")
    assert shim is not None
    assert shim.loader is not None
    shim.loader.exec_module(module_from_spec(shim))
    import pyarrow.parquet  # noqa: F401
    import pytest  # noqa: F401

    import_deepspeed()


def in_a_fork(mutant: Mutant | None, tests: Sequence[str]) -> int:
    """pid of a process that runs the tests on a copy of the packages with the fault, and exits as pytest does."""
    pid = os.fork()
    if pid == 0:
        code = -1
        try:
            os.setsid()  # the ranks that it starts can be killed with it
            with tempfile.TemporaryDirectory() as copy:
                code = _run(mutant, tests, Path(copy))
        finally:
            os._exit(code)
    return pid


def _run(mutant: Mutant | None, tests: Sequence[str], copy: Path) -> int:
    for package in PACKAGES:
        shutil.copytree(
            ROOT / package, copy / "vergence" / package, ignore=shutil.ignore_patterns("__pycache__")
        )
    if mutant is not None:
        target = copy / "vergence" / mutant.file
        target.write_text(target.read_text().replace(mutant.old, mutant.new))
    os.environ |= {"PYTHONPATH": str(copy), "CI": "true"}
    sys.path.insert(0, str(copy))
    os.chdir(ROOT)
    if mutant is not None:
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, 1)
        os.dup2(silence, 2)
    import pytest

    from vergence.platform import errors

    assert Path(errors.__file__).is_relative_to(copy), (
        f"the tests would import {errors.__file__}, not the copy"
    )
    return int(pytest.main(["-x", "-m", "", "-p", "no:cacheprovider", *_IMPORTED, "--durations=1", *tests]))


class Running(NamedTuple):
    mutant: Mutant
    start: float


def verdicts(mutants: Iterable[Mutant], jobs: int) -> Iterator[tuple[Mutant, str, float]]:
    """Each mutant as it ends: killed, survived or why neither; and the seconds it took."""
    waiting, running = list(mutants)[::-1], dict[int, Running]()
    while waiting or running:
        while waiting and len(running) < jobs:
            mutant = waiting.pop()
            running[in_a_fork(mutant, [mutant.test])] = Running(mutant, time.monotonic())
        time.sleep(0.05)
        for pid, (mutant, start) in list(running.items()):
            seconds = time.monotonic() - start
            ended, status = os.waitpid(pid, os.WNOHANG)
            if not ended and seconds < LIMIT_S:
                continue
            with suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
            if not ended:
                os.waitpid(pid, 0)
            del running[pid]
            yield mutant, _word(os.waitstatus_to_exitcode(status) if ended else RED), seconds


def _word(code: int) -> str:
    return {GREEN: "survived", RED: "killed"}.get(code, f"its test did not run (pytest ended with {code})")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--jobs", type=int, default=2, help="faults tried at the same time")
    arguments = parser.parse_args()
    mutants, start = chosen(arguments.names), time.monotonic()
    problems = stale(mutants)
    if problems:
        print("\n".join(problems))
        return 1
    import_what_is_slow()
    _, status = os.waitpid(in_a_fork(None, sorted({mutant.test for mutant in mutants})), 0)
    if os.waitstatus_to_exitcode(status) != GREEN:
        print("a named test is red without any fault: mend it first")
        return 1
    killed = 0
    for mutant, word, seconds in verdicts(mutants, arguments.jobs):
        print(f"{word:8}  {seconds:4.0f} s  {mutant.name}  ({mutant.file})", flush=True)
        killed += word == "killed"
    print(f"{killed} of {len(mutants)} killed in {time.monotonic() - start:.0f} s")
    return 0 if killed == len(mutants) else 1


if __name__ == "__main__":
    sys.exit(main())
