"""Names of the tests that go red, and the form of a table of faults."""

_TRAIN, _DATA, _AUGMENT = "tests/platform/train", "tests/platform/data", "tests/platform/augment"
WIRING = f"{_TRAIN}/test_loop_wiring.py"
_STEPS = f"{WIRING}::test_every_step_leaves_the_state_of_the_plain_run"
MOCO, BYOL, SIMCLR = (f"{_STEPS}[{method}]" for method in ("mocov2", "byol", "simclr"))
RECORDS = f"{WIRING}::test_records_are_those_of_the_plain_run"
COMMITS = f"{WIRING}::test_commits_hold_what_the_ranks_had_after_so_many_steps[mocov2]"
ENDS = f"{WIRING}::test_ends_are_the_same_on_all_ranks"
LOOP, EXACT, NORMS, ENGINE, ENGINE_GROUPS, RECORD, SCHEDULE = (
    f"{_TRAIN}/test_{part}.py"
    for part in ("loop", "exact", "norms", "engine", "engine_groups", "record", "schedule")
)
BATCH_NORM, NORM_CHECK, MICRO, MEMORY = (
    f"{_TRAIN}/test_{part}.py" for part in ("batch_norm", "norm_check", "micro", "memory")
)
PLAN, STREAM = (f"{_DATA}/test_{part}.py" for part in ("plan", "stream"))
CROP, VIEWS, OPS, RNG = (f"{_AUGMENT}/test_{part}.py" for part in ("crop", "views", "ops", "rng"))
COMMIT = "tests/platform/runs/test_commit.py"
MONITOR, SWEEP, FEATURES, PROTOCOLS, LINEAR = (
    f"tests/platform/evaluate/test_{part}.py"
    for part in ("monitor", "sweep", "features", "protocols", "linear")
)
EVALUATE = "tests/pipelines/test_evaluate.py"
PARTS = "tests/methods/parts"

# name -> text that is there once, what it becomes, test that goes red
Faults = dict[str, tuple[str, str, str]]
