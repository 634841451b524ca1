import subprocess
import sys

import pytest

from vergence.platform.cluster.capacity import Need, Node, ScaleConfig, check_local, fits, physical_cpus
from vergence.platform.errors import UserError


def need(readers: int = 1, reader_cpus: float = 1.0, **scale: int) -> Need:
    return Need(ScaleConfig(**scale), readers, reader_cpus)


@pytest.mark.parametrize(
    ("workers", "readers", "used"), [(1, 1, 1), (1, 3, 3), (2, 1, 2), (2, 3, 2), (2, 4, 4), (4, 2, 4)]
)
def test_readers_count_as_they_are_used_at_least_one_a_rank(workers: int, readers: int, used: int) -> None:
    wants = need(readers, 0.5, workers=workers, cpus_per_worker=3)
    assert wants.num_readers == used
    assert wants.cpus == 3 * workers + 0.5 * used


LACKS = [
    # what is needed, CPUs (and GPUs) of the nodes, what is missing
    (need(workers=3), [6], None),
    (need(workers=3), [2, 2, 2], None),
    (need(workers=3), [5], "3 workers x 1 CPUs + 3 readers x 1 CPUs = 6 CPUs, got 5"),
    (need(workers=3), [], "3 workers x 1 CPUs + 3 readers x 1 CPUs = 6 CPUs, got 0"),
    (need(cpus_per_worker=16), [8, 8, 8], "a worker needs 16 CPUs on one node, got at most 8"),
    (need(cpus_per_worker=16), [8, 17], None),
    (need(reader_cpus=3.0), [2, 2], "a reader needs 3 CPUs on one node, got at most 2"),
    (
        need(workers=4, cpus_per_worker=5, reader_cpus=0.5),
        [8, 8, 8],
        "4 workers of 5 CPUs on one node each, got room for 3 on nodes of 8, 8, 8 CPUs",
    ),
    (
        need(workers=2, cpus_per_worker=3, reader_cpus=2.0),
        [4, 4, 2],
        "2 readers of 2 CPUs beside the workers, got nodes with 1, 1, 2 CPUs left",
    ),
    (need(workers=2, cpus_per_worker=3, reader_cpus=0.1), [4, 4], None),
    (need(reader_cpus=0.1, readers=10), [2], None),  # ten times a tenth is one
    (need(workers=2, gpus_per_worker=1), [(8, 1)], "2 GPUs needed, got 1"),
    (need(workers=2, gpus_per_worker=1), [(2, 1), (2, 1)], None),
    (
        need(workers=2, gpus_per_worker=1, cpus_per_worker=2, reader_cpus=0.5),
        [(1, 2), (8, 0), (2, 1)],
        "2 workers of 2 CPUs and 1 GPU on one node each, got room for 1 on nodes of 1, 8, 2 CPUs",
    ),
]


@pytest.mark.parametrize(("wants", "nodes", "lacks"), LACKS)
def test_a_run_fits_or_what_it_lacks_is_told_with_the_arithmetic(
    wants: Need, nodes: list[int | tuple[int, int]], lacks: str | None
) -> None:
    assert fits(wants, [Node(*node) if isinstance(node, tuple) else Node(node) for node in nodes]) == lacks


def test_trials_of_a_search_add_up_with_their_drivers_and_one_cpu_more() -> None:
    two = need(workers=2, readers=1, reader_cpus=0.5)._replace(trials=3)
    assert two.cpus == pytest.approx(3 * (2 + 2 * 0.5) + 3 * 0.01 + 1)
    assert two.arithmetic() == "6 workers x 1 CPUs + 6 readers x 0.5 CPUs + 3 trials x 0.01 + 1 = 10.03 CPUs"
    assert fits(two, [Node(10)]) == f"{two.arithmetic()}, got 10"
    assert fits(two, [Node(11)]) is None
    assert (
        fits(need(workers=2, gpus_per_worker=1)._replace(trials=2), [Node(99, 3)]) == "4 GPUs needed, got 3"
    )
    wide = need(cpus_per_worker=4, reader_cpus=0.5)._replace(trials=3)
    assert "3 workers of 4 CPUs on one node each, got room for 2" in str(
        fits(wide, [Node(7), Node(7), Node(3)])
    )


def test_a_machine_may_be_over_declared_but_not_without_bounds() -> None:
    limit = max(8, 4 * physical_cpus())
    check_local(need(workers=limit // 2))
    with pytest.raises(
        UserError, match=rf"{limit} workers x 1 CPUs \+ {limit} readers x 1 CPUs = {2 * limit} CPUs"
    ):
        check_local(need(workers=limit))


def test_gpus_are_counted_with_torch_and_only_if_they_are_asked_for() -> None:
    code = """
import sys
from vergence.platform.cluster.capacity import Need, ScaleConfig, check_local
check_local(Need(ScaleConfig(), 1, 1.0))
print("torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
    import torch

    if not torch.cuda.is_available():
        with pytest.raises(UserError, match=r"1 workers x 1 GPUs = 1 GPUs, but this machine has 0"):
            check_local(need(gpus_per_worker=1))
