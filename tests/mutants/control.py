"""What a command does with a run, how it stops, and how the batch lies on the ranks."""

from .names import Faults

_DECIDE_TEST = "tests/pipelines/test_decide.py"
_LAYOUT_TEST = "tests/platform/train/test_layout.py"
_DRIVER_TEST = "tests/platform/cluster/test_driver.py"

_DECIDE: Faults = {
    "older-schema-goes-on": ("    if other is not None:\n", "    if False:\n", _DECIDE_TEST),
    "other-data-go-on": (
        "if past.has_begun and data is not None and known not in",
        "if past.has_begun and data is None and known not in",
        _DECIDE_TEST,
    ),
    "another-holdout-goes-on": ("rule != HOLDOUT_RULE:\n", "rule is None:\n", _DECIDE_TEST),
    "mistakes-are-kept": ("forgets=bool(changes) or not same_data", "forgets=False", _DECIDE_TEST),
    "last-epoch-unscored": ("if commit and not commit.monitor_due and", "if commit and", _DECIDE_TEST),
    "done-though-not-tracked": ("past.facts.tracked and registered", "registered", _DECIDE_TEST),
    "done-though-not-registered": ("past.facts.tracked and registered", "past.facts.tracked", _DECIDE_TEST),
    "done-on-other-data": (
        "(data is not None or _names_same_data(past, recipe))",
        "True",
        _DECIDE_TEST,
    ),
}

_PAST: Faults = {
    "fork-is-bound-by-the-others-recipe": (
        '"recipe" in newest.manifest and "forked_from" not in newest.manifest:',
        '"recipe" in newest.manifest:',
        "tests/platform/runs/test_past.py",
    ),
}

_STOP: Faults = {
    "asked-too-early-is-lost": (
        "            if self.is_asked:\n                passes_on()\n",
        "",
        "tests/platform/runs/test_stop.py",
    ),
}

_DRIVER: Faults = {
    "failed-ranks-start-anew": (
        "while fitting.is_alive() and failed is None:",
        "while fitting.is_alive():",
        _DRIVER_TEST,
    ),
    "ranks-of-the-callers-session-go-on": (' and session.place != "caller" and (', " and (", _DRIVER_TEST),
    "stop-file-stays": ("        job.stop_file.unlink(missing_ok=True)\n", "        pass\n", _DRIVER_TEST),
    "records-of-before-are-told-again": ("after=float(start_step)", "after=-1.0", _DRIVER_TEST),
}

_WORKER: Faults = {
    "failure-of-rank-0-alone": (
        "            leave_outcome(job.outcome_file, Outcome",
        "            rank or leave_outcome(job.outcome_file, Outcome",
        "tests/platform/cluster/test_worker.py",
    ),
    "failed-ranks-train-again": (
        "    if read_outcome(job.outcome_file) is not None:\n",
        "    if False:\n",
        "tests/platform/cluster/test_worker.py",
    ),
}

_LAYOUT: Faults = {
    "precision-changes-with-the-machine": ("return kept.precision or (", "return (", _LAYOUT_TEST),
    "span-changes-with-memory": ("norm.span or spec.kept.span", "norm.span", _LAYOUT_TEST),
    "gpu-run-by-the-hosts-memory": ("    if not spec.on_gpu:\n", "    if True:\n", _LAYOUT_TEST),
    "regime-changes-with-memory": (
        'config.regime == "auto" and kept.regime is not None',
        "False",
        _LAYOUT_TEST,
    ),
}

_MACHINE: Faults = {
    "strongest-node-counts": (
        "min(machine.host_bytes for machine in machines)",
        "max(machine.host_bytes for machine in machines)",
        "tests/platform/train/test_machine.py",
    ),
    "each-worker-has-the-whole-host": (
        " // max(1, workers)",
        "",
        "tests/platform/train/test_machine.py",
    ),
}

FAULTS = {
    "pipelines/decide.py": _DECIDE,
    "platform/runs/past.py": _PAST,
    "platform/runs/stop.py": _STOP,
    "platform/cluster/driver.py": _DRIVER,
    "platform/cluster/worker.py": _WORKER,
    "platform/train/layout.py": _LAYOUT,
    "platform/train/machine.py": _MACHINE,
}
