"""The command `vergence`: finds the verb, runs it, turns errors into one line and an exit code.

Exit codes: 0 done or nothing to do, 1 failed, 2 the user's mistake, 130/143 interrupted after a commit.
"""

import sys

if __name__ == "__main__" and not sys.flags.safe_path:
    # `python -m` searches the current folder first: a `random.py` or a folder `ray` in it is not what we mean
    del sys.path[0]

import argparse
import errno
import importlib
import os
from collections.abc import Callable, Sequence
from typing import NoReturn

from vergence.platform.errors import VergenceError
from vergence.platform.masking import masked
from vergence.platform.text import never_fail_to_print, printable

# verb -> (module, one line); modules load only when their verb is used
VERBS = {
    "shards": ("shards", "pack images into webdataset shards; index, check and preview them"),
    "init": ("init", "write a recipe to change, with the choices beside each setting"),
    "pretrain": ("pretrain", "train an encoder from a recipe; the same command goes on after any stop"),
    "tune": ("tune", "search settings of a recipe; each trial is a run"),
    "evaluate": ("evaluate", "measure frozen encoders by kNN, a linear classifier or names of classes"),
    "embed": ("embed", "write the embeddings of shards or a folder of images to parquet"),
    "look": ("look", "draw what an encoder sees in images: a map, and nearest neighbours"),
    "export": ("export", "write an encoder as torch program, safetensors, ONNX or a folder of timm's"),
    "promote": ("promote", "make a candidate of the registry champion if it is better; or go back"),
    "serve": ("serve", "answer requests for embeddings over HTTP, in batches"),
    "submit": ("submit", "run a verb on a cluster and follow it; the same command goes on after any stop"),
    "jobs": ("jobs", "list, follow and stop what was submitted"),
    "runs": ("runs", "list, show, rename and delete runs"),
    "methods": ("methods", "list the methods and their settings"),
}


# what the user can mend by another argument, not by another disk
MISTAKES = (FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError, PermissionError)


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line; its subparsers too."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"vergence: {masked(message)}; see `{self.prog} --help`\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    return guarded(lambda: _command(argv))


def _command(argv: Sequence[str] | None) -> int:
    never_fail_to_print()
    arguments = list(sys.argv[1:] if argv is None else argv)
    verb = arguments[0] if arguments and arguments[0] in VERBS else None
    parser = Parser(
        prog="vergence",
        description="Pretrain image encoders without labels, from a laptop to a cluster.",
        epilog="Images of your own: vergence shards pack, then vergence pretrain images-small. More: vergence VERB --help.",
    )
    if "--version" in arguments[:1]:  # before any module that takes time is asked
        from vergence.platform.version import code_version

        print(f"vergence {code_version()}")
        return 0
    parser.add_argument("--version", action="store_true", help="print the version")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB")
    for name, (module, line) in VERBS.items():
        subparser = verbs.add_parser(
            name,
            help=line,
            description=f"{line[0].upper()}{line[1:]}.",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        if name == verb:
            importlib.import_module(f"vergence.pipelines.{module}").configure(subparser)
    options, rest = parser.parse_known_args(arguments)
    if options.verb is None:
        parser.print_help()
        return 0
    if rest and not (hasattr(options, "overrides") and all("=" in word and word[0] != "-" for word in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        options.overrides = [*options.overrides, *rest]  # settings that stand after an option
    chosen = importlib.import_module(f"vergence.pipelines.{VERBS[options.verb][0]}")
    return int(chosen.main(options))


def guarded(work: Callable[[], int]) -> int:
    """The exit code of `work`; what goes wrong in a way that a user can understand is one line."""
    try:
        return work()
    except VergenceError as error:
        return _fail(str(error), error.exit_code)
    except BrokenPipeError:
        # the reader of a pipe has seen enough; what Python would flush at its end goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        where = error.filename2 or error.filename or "while reading or writing"
        if error.errno == errno.ENOSPC:
            return _fail(f"no space left on the device ({where}); nothing was lost", 1)
        return _fail(f"{where}: {error.strerror or error}", 2 if isinstance(error, MISTAKES) else 1)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)


def _fail(message: str, code: int) -> int:
    print(f"vergence: {masked(printable(' '.join(message.split())))}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
