import pytest

from vergence.platform.cluster.session import Need, ScaleConfig, check_cluster, check_local, physical_cpus
from vergence.platform.errors import UserError


def need(**scale):
    return Need(ScaleConfig(**scale), readers=1, reader_cpus=1.0)


def test_a_machine_may_be_over_declared_but_not_without_bounds():
    limit = max(8, 4 * physical_cpus())
    check_local(need(workers=limit - 1))
    with pytest.raises(
        UserError, match=rf"{limit} workers x 1 CPUs \+ 1 readers x 1 CPUs = {limit + 1} CPUs"
    ):
        check_local(need(workers=limit))


def test_a_cluster_that_is_too_small_is_refused_with_the_arithmetic():
    check_cluster(need(workers=3), {"CPU": 4.0})
    with pytest.raises(
        UserError, match=r"4 workers x 1 CPUs \+ 1 readers x 1 CPUs = 5 CPUs, but the Ray cluster has 4"
    ):
        check_cluster(need(workers=4), {"CPU": 4.0})
    with pytest.raises(UserError, match="2 GPUs needed, but the Ray cluster has 1"):
        check_cluster(need(workers=2, gpus_per_worker=1), {"CPU": 8.0, "GPU": 1.0})
