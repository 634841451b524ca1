"""The rank loop with a mirror: its process is killed, its folder deleted, and another home goes on from the store."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from shard_files import png, write_shard

from vergence.platform.runs import commit as commits
from vergence.platform.runs.commit import Commit
from vergence.platform.runs.remote import Remote

TRAIN = """
import os, signal, sys, time
from pathlib import Path
from stopped_runs import go_on
from vergence.pipelines.recipe import build_method, load_recipe
from vergence.pipelines.resolve import data_facts, resolve
from vergence.platform.data.index import open_index
from vergence.platform.data.stream import Stream
from vergence.platform.runs import mirror
from vergence.platform.runs.remote import Remote
from vergence.platform.runs.run import Run
from vergence.platform.runs.stop import Stop

shard, url, killed_at = sys.argv[1], sys.argv[2], int(sys.argv[3])
recipe = load_recipe("simclr-cifar10", [
    f"data.train={shard}", "epochs=2", "batch.global=12", "batch.micro=6", "norm.group=6", "scale.workers=1",
    "precision=fp32", "data.holdout=0", "views.0.size=8", "encoder.width=0.0625", "commit.every_steps=5",
    f"commit.mirror={url}",
])
index = open_index(shard, Path(os.environ["VERGENCE_HOME"]) / "index")
resolved = resolve(recipe, index, build_method(recipe, data_facts(recipe, index)))
run, undisturbed, share = Run("first"), Run("undisturbed"), Stream.share

def watched(stream, step, *place):
    if step == killed_at:
        while not any(commit.step == 5 for commit in Remote(url, run.name).whole()):
            time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGKILL)
    return share(stream, step, *place)

Stream.share = watched
for each in run, undisturbed:
    each.logs.mkdir(parents=True, exist_ok=True)
with mirror.mirrored(run, recipe.commit, Stop(), print):
    go_on(resolved, run, 0, 1)
go_on(resolved, undisturbed, 0, 1)
"""


def trained(home: Path, shard: Path, url: str, killed_at: int = -1) -> subprocess.CompletedProcess[str]:
    paths = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "VERGENCE_HOME": str(home), "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, "-c", TRAIN, str(shard), url, str(killed_at)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def final(run: Path) -> Commit:
    commit = commits.newest_intact(run / "commits")
    assert commit is not None
    assert commit.step == 8
    return commit


def test_a_run_that_was_killed_goes_on_in_another_home_to_the_same_weights(
    bucket: str, tmp_path: Path
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (48, 12, 12, 3), dtype=np.uint8)
    shard = write_shard(tmp_path / "t-000000.tar", [(f"{i:03d}", {"png": png(pixels[i])}) for i in range(48)])
    killed = trained(tmp_path / "one", shard, bucket, killed_at=6)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    shutil.rmtree(tmp_path / "one")
    done = trained(tmp_path / "two", shard, bucket)
    assert done.returncode == 0, done.stderr
    assert f"run first: goes on from {bucket}/first, step 5" in done.stdout
    runs = (tmp_path / "two" / name for name in ("first", "undisturbed"))
    state, reference = (commits.load_state(final(run)) for run in runs)
    assert state.keys() == reference.keys()
    assert [name for name in state if not torch.equal(state[name], reference[name])] == []
    there = Remote(bucket, "first")
    steps = [commit.step for commit in there.whole()]
    assert steps[:2] == [8, 5]  # 4 may have been superseded before its turn
    assert there.holder() is None
