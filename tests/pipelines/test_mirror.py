"""A run with `commit.mirror`: its machine may go; and `vergence runs --mirror`."""

import json
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from object_servers import Faults
from runs_for_real import kill_everything, start, vergence, wait_for_step

from vergence.pipelines import pretrain
from vergence.pipelines.cli import main
from vergence.pipelines.runs import list_mirror
from vergence.pipelines.search import Search
from vergence.platform.errors import UserError
from vergence.platform.runs import commit as commits
from vergence.platform.runs.commit import CommitConfig
from vergence.platform.runs.mirror import mirrored
from vergence.platform.runs.run import Run
from vergence.platform.runs.stop import Stop

MIRROR = "s3://bucket/runs"
SMALL = ("scale.workers=1", "track.register=null")


@pytest.fixture
def here(s3_environment: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The state folder of this process, which reaches the store."""
    monkeypatch.setenv("VERGENCE_HOME", str(tmp_path))
    return tmp_path


def test_runs_of_a_mirror_are_listed_and_shown(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, mirror = Run("mine"), f"{MIRROR}-listed"
    facts = {
        "step": 40,
        "score": 0.75,
        "score_name": "knn",
        "counts": {},
        "recipe": {"method": {"name": "simclr"}},
    }
    with mirrored(run, CommitConfig(mirror=mirror), Stop(), print):
        commits.write(run.commits, {"model.w": torch.zeros(2)}, facts, run.attempt, owned=lambda: True)
        run.remember(id="1d", finished=True)
        time.sleep(1.5)  # it is copied meanwhile
        assert main(["runs", "list", "--mirror", mirror]) == 0
        words = capsys.readouterr().out
        assert {"mine", "simclr", "40,", "finished", "0.750"} <= set(words.split())
        assert "process" in words
    assert main(["runs", "list", "--mirror", f"{mirror}/", "--json"]) == 0
    (listed,) = json.loads(capsys.readouterr().out)
    assert (listed["name"], listed["step"], listed["finished"], listed["held_by"]) == ("mine", 40, True, None)
    assert listed["commits"] == [{"step": 40, "score": 0.75}]
    assert main(["runs", "show", "mine", "--mirror", mirror, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["recipe"] == {"method": {"name": "simclr"}}
    assert main(["runs", "show", "mime", "--mirror", mirror]) == 2
    assert "has no run 'mime' (did you mean mine?" in capsys.readouterr().err
    assert main(["runs", "list", "--mirror", f"{MIRROR}-empty"]) == 0
    assert f"no runs in {MIRROR}-empty" in capsys.readouterr().out
    assert main(["runs", "list", "--mirror", "/mnt/runs"]) == 2


def test_a_mirror_that_is_not_there_is_refused_before_anything(here: Path, place: Path) -> None:
    with pytest.raises(UserError, match="there is no such bucket; make it, or mend its name"):
        pretrain(str(place / "tiny.yaml"), ["commit.mirror=s3://other/runs"])
    assert not (here / "index").exists()


def test_a_fork_that_another_machine_has_begun_is_gone_on_with(here: Path, place: Path) -> None:
    run, mirror = Run("new"), f"{MIRROR}-forked"
    with mirrored(run, CommitConfig(mirror=mirror), Stop(), print):
        facts = {"step": 40, "counts": {}}
        commits.write(run.commits, {"model.w": torch.zeros(2)}, facts, run.attempt, owned=lambda: True)
    shutil.rmtree(run.path)
    arguments = [f"commit.mirror={mirror}"]
    with pytest.raises(UserError, match="run new was begun by another version"):  # it was made by hand
        pretrain(str(place / "tiny.yaml"), arguments, name="old", fork="new")
    with pytest.raises(UserError, match="run old has no commit to start from"):
        pretrain(str(place / "tiny.yaml"), arguments, name="old", fork="newer")


def test_a_search_has_no_mirror(here: Path, place: Path) -> None:
    from vergence.pipelines.tune import asked

    (here / "search.yaml").write_text(
        "space: {optim.lr: {choice: [0.1]}}\nalgorithm: grid\nbudget: {epochs: 1}\n"
    )
    with pytest.raises(UserError, match="searches have none"):
        asked(str(place / "tiny.yaml"), str(here / "search.yaml"), [f"commit.mirror={MIRROR}"], None)
    assert isinstance(asked(str(place / "tiny.yaml"), str(here / "search.yaml"), [], None), Search)


@pytest.mark.slow
def test_a_run_whose_machine_is_gone_goes_on_elsewhere_to_the_same_weights(here: Path, place: Path) -> None:
    command = ("pretrain", str(place / "tiny.yaml"), "epochs=1", *SMALL)
    done = vergence(place / "undisturbed", *command, timeout_s=600)
    assert done.returncode == 0, done.stderr
    reference = final_state(place / "undisturbed")

    mirrored, log = (*command, f"commit.mirror={MIRROR}"), place / "mirrored.log"
    process = start(place / "one", *mirrored, log=log)
    while not (there := next(iter(list_mirror(MIRROR)), {"step": 0}))["step"]:
        assert process.poll() is None, log.read_text()
        time.sleep(0.1)
    process.send_signal(signal.SIGSTOP)  # nothing is copied any more, while the second one starts
    assert there["step"] < 9
    assert there["held_by"]["pid"] == process.pid
    second = vergence(place / "two", *mirrored, timeout_s=600)
    assert second.returncode == 2, second.stderr
    assert f"process {process.pid} on" in second.stderr
    kill_everything(process)
    shutil.rmtree(place / "one")

    done = vergence(place / "two", *mirrored, timeout_s=600)
    assert done.returncode == 0, done.stderr
    assert f"run tiny: goes on from {MIRROR}/tiny, step" in done.stderr
    assert_equal(final_state(place / "two"), reference)
    (there,) = list_mirror(MIRROR)
    assert (there["step"], there["finished"], there["held_by"]) == (9, True, None)

    done = vergence(place / "three", *mirrored, timeout_s=600)  # all is trained: the encoder is made anew
    assert done.returncode == 0, done.stderr
    assert "run tiny is trained, step 9" in done.stderr
    assert (place / "three" / "tiny" / "exports" / "encoder.pt2").exists()
    assert_equal(final_state(place / "three"), reference)


@pytest.mark.slow
def test_a_store_that_goes_away_while_a_run_trains_costs_it_nothing(
    here: Path, faults: Faults, place: Path
) -> None:
    command = ("pretrain", str(place / "tiny.yaml"), f"commit.mirror={MIRROR}-away", "epochs=1", *SMALL)
    log = place / "away.log"
    process = start(place / "away", *command, log=log)
    wait_for_step(place / "away" / "tiny", 0, process, timeout_s=600)
    faults.away = True
    assert process.wait(600) == 0, log.read_text()
    faults.away = False
    assert f"{MIRROR}-away/tiny has not got the commit at step 9" in log.read_text().splitlines()[-1]
    assert commits.newest(place / "away" / "tiny" / "commits")
    done = vergence(place / "away", *command, timeout_s=600)
    assert done.returncode == 0, done.stderr
    (there,) = list_mirror(f"{MIRROR}-away")
    assert (there["step"], there["finished"], there["held_by"]) == (9, True, None)


@pytest.mark.slow
def test_ctrl_c_ends_with_the_last_commit_in_the_mirror_and_the_run_given_back(
    here: Path, place: Path
) -> None:
    command = ("pretrain", str(place / "tiny.yaml"), f"commit.mirror={MIRROR}-stopped", "epochs=30", *SMALL)
    log = place / "stopped.log"
    process = start(place / "stopped", *command, log=log)
    wait_for_step(place / "stopped" / "tiny", 3, process, timeout_s=600)
    process.send_signal(signal.SIGINT)
    assert process.wait(600) == 130, log.read_text()
    last = commits.newest(place / "stopped" / "tiny" / "commits")
    assert last is not None
    (there,) = list_mirror(f"{MIRROR}-stopped")
    assert (there["step"], there["held_by"]) == (last.step, None)


def final_state(home: Path) -> dict[str, torch.Tensor]:
    commit = commits.newest(home / "tiny" / "commits")
    assert commit is not None
    assert commit.step == 9
    return commits.load_state(commit)


def assert_equal(state: dict[str, torch.Tensor], reference: dict[str, torch.Tensor]) -> None:
    assert state.keys() == reference.keys()
    assert [name for name in state if not torch.equal(state[name], reference[name])] == []
