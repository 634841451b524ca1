"""`vergence submit --check`: what is wrong with Kubernetes manifests, told without a cluster."""

import json
import sys
from pathlib import Path

from vergence.platform.jobs.check import check as checker
from vergence.platform.jobs.check.finding import Fault
from vergence.platform.text import printable


def check(path: Path, *, as_json: bool) -> int:
    """Print the faults of a file or folder, one a line; 0 without any, 2 with some. Raises UserError."""
    bundles, faults = checker.check(path)
    if as_json:
        listed = [_dump(fault) for fault in faults]
        print(json.dumps(listed, indent=1))
    else:
        for fault in faults:
            print(printable(str(fault)))
    objects = sum(len(bundle.documents) for bundle in bundles)
    counted = f"{len(faults)} {'fault' if len(faults) == 1 else 'faults'}" if faults else "no faults"
    where = f"{len(bundles)} {'bundle' if len(bundles) == 1 else 'bundles'}"
    print(f"{objects} objects in {where}: {counted}", file=sys.stderr)
    return 2 if faults else 0


def _dump(fault: Fault) -> dict[str, str]:
    document = fault.document
    return {"file": document.file, "object": f"{document.kind}/{document.name}", **fault.finding._asdict()}
