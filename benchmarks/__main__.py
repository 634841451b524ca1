"""`make bench`: speed beside the peer, in one table and as JSON.

make bench                        all sections, three interleaved rounds
make bench BENCH="training --rounds 5 --json bench.json"
"""

import argparse
import importlib
import json
import platform
import sys
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

SECTIONS = {
    "training": "whole training against lightly 1.6",
    "reader": "the 32-px data plane alone",
    "photos": "JPEG photographs to two views of 224, against torchvision on PIL",
    "step": "our step against a bare loop",
    "equality": "gradients of 1, 2, 3 ranks and of two-pass batches",
    "losses": "value and gradient of our criteria against lightly's losses, where they are the same",
    "start": "seconds to the first step on a Ray that runs, and memory, of short and long runs",
    "commit": "seconds and peak memory of a commit of 100 M parameters with AdamW on two ranks",
    "store": "training from shards behind a slow web server, beside files",
    "serve": "requests of 32 clients, embedded in batches and one at a time",
}
ELSEWHERE = {
    "gpu": "a step of SimCLR on ResNet-50 at 224 px, and the share of its views; needs a GPU"
}  # by name only
KINDS = (
    "images_per_cpu_s",
    "images_per_s",
    "training_thread_ms_per_image",
    "requests_per_s",
    "milliseconds",
    "seconds",
    "megabytes",
    "ratios",
    "overhead_ms_per_image",
    "difference",
)


def main() -> int:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__.splitlines()[0])
    parser.add_argument("sections", nargs="*", choices=[*SECTIONS, *ELSEWHERE, []], help="default: all")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write everything there")
    options = parser.parse_args()
    console, results = Console(stderr=True), {}
    for name in options.sections or SECTIONS:
        console.print(f"== {name}: {(SECTIONS | ELSEWHERE)[name]}")
        results[name] = importlib.import_module(f"benchmarks.{name}").run(options.rounds, console.print)
    report = {"date": f"{date.today()}", "machine": machine(), "rounds": options.rounds, "sections": results}
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    return show(report)


def machine() -> dict[str, Any]:
    import os

    import torch

    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        cpu = next(
            line.split(":")[1].strip() for line in info.read_text().splitlines() if "model name" in line
        )
    versions = {name: _version(name) for name in ("torch", "ray", "deepspeed", "lightly", "timm")}
    return {
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        **versions,
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # the rank loop needs no Ray
        return "none"


def show(report: dict[str, Any]) -> int:
    """The table; exit code 1 if a bound is missed."""
    missed = 0
    table = Table("section", "figure", "median", "range", "asked", box=None)
    for name, section in report["sections"].items():
        for kind in KINDS:
            rows = section.get(kind, {})
            if rows and "median" in rows:
                rows = {kind: rows}
            for figure, values in rows.items():
                span = f"{values['min']:.3g} - {values['max']:.3g}"
                table.add_row(
                    name, f"{figure} [{kind}]".replace("[", "\\["), f"{values['median']:.4g}", span, ""
                )
        for kind, sign in (("at_least", 1), ("at_most", -1)):
            for figure, (value, bound) in section.get(kind, {}).items():
                held = sign * (value - bound) >= 0
                missed += not held
                asked = f"{'>=' if sign > 0 else '<='} {bound:g} {'held' if held else 'MISSED'}"
                table.add_row(name, figure, f"{value:.3g}", "", asked)
    Console(width=150).print(table)
    print(", ".join(f"{name} {value}" for name, value in report["machine"].items()))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
