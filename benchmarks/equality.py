"""How equal is equal: gradients of 1, 2 and 3 ranks and of two-pass batches, in float64, by the tests' own cases."""

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measure import spread

TESTS = Path(__file__).resolve().parent.parent / "tests"


def run(rounds: int, says: Callable[[str], None]) -> dict[str, Any]:
    """Largest difference of any tensor's gradient, relative to max(|g|, 1e-3 |all gradients|)."""
    sys.path.insert(0, str(TESTS))
    spec = importlib.util.spec_from_file_location("exact", TESTS / "platform/train/test_exact.py")
    assert spec is not None
    assert spec.loader is not None
    exact: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(exact)
    from ranks import run_ranks

    differences: dict[str, dict[str, float]] = {}
    for name, groups in exact.SETTINGS.items():
        for group in groups:
            reference = exact.step(0, 1, name, group, exact.G, "one")
            label = f"{name}, norm group {group}"
            values = [
                difference(result, reference)
                for world_size in (2, 3)
                for (result,) in run_ranks(
                    exact.cases, world_size, [(name, group, exact.G // world_size, "one")]
                )
            ]
            differences[f"{label}: 1 = 2 = 3 ranks"] = spread(values)
            if group == exact.GROUP:
                two_pass = exact.step(0, 1, name, group, exact.MICRO, "two-pass")
                differences[f"{label}: two-pass = one pass"] = spread([difference(two_pass, reference)])
            says(f"{label}: {max(values):.1e}")
    worst = max(row["max"] for row in differences.values())
    return {"difference": differences, "at_most": {"largest gradient difference": (worst, 1e-9)}}


def difference(result: dict[str, np.ndarray], reference: dict[str, np.ndarray]) -> float:
    names = [name for name in reference if name.startswith("grad.")]
    everything = np.sqrt(sum((reference[name] ** 2).sum() for name in names))
    return max(
        float(np.linalg.norm(result[name] - reference[name]))
        / max(float(np.linalg.norm(reference[name])), 1e-3 * float(everything))
        for name in names
    )
