"""What must not be retried, told apart from what a new start may mend."""

import errno

import pytest
import ray

from vergence.platform.cluster.worker import beyond_mending
from vergence.platform.errors import UserError, VergenceError


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (VergenceError("no sample can be read"), "no sample can be read"),
        (UserError("match fits nothing"), "match fits nothing"),
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device (/runs/r)"),
        (OSError(errno.EDQUOT, "Disk quota exceeded", "/x/f"), "Disk quota exceeded (/x/f)"),
    ],
)
def test_data_recipe_and_full_disk_are_beyond_mending(error, reason, tmp_path):
    assert beyond_mending(error, "/runs/r").startswith(reason)
    if isinstance(error, VergenceError):
        error.args = (f"{error}\nTo change retry attempts, configure Ray",)  # as Ray Data does
    in_a_task = ray.exceptions.RayTaskError("read", "traceback", error).as_instanceof_cause()
    assert beyond_mending(in_a_task, "/runs/r").startswith(reason)
    assert "\n" not in beyond_mending(in_a_task, "/runs/r")


@pytest.mark.parametrize("error", [RuntimeError("gloo"), OSError(errno.EIO, "I/O error"), AssertionError()])
def test_the_rest_may_be_mended_by_a_new_start(error):
    assert beyond_mending(error, "/runs/r") is None
