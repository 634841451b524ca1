"""Jobs on a real Ray cluster with a token, through its dashboard; what they run is a script in place of `vergence`."""

import json
import os
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray_clusters
from ray_clusters import TOKEN, Cluster

from vergence.pipelines import cli
from vergence.platform.errors import UserError, VergenceError
from vergence.platform.jobs import dashboard
from vergence.platform.jobs.job import Job
from vergence.platform.jobs.ray import RayJobs

SCRIPT = """#!/bin/sh
case $2 in
show) echo "home $VERGENCE_HOME, in $PWD"; cat "$3"; shift 3; printf '<%s>' "$@"; echo; exit 3 ;;
count) for i in $(seq 1 60); do echo "line $i of äöü"; sleep 0.1; done ;;
refuse) echo 'vergence: run x: no such shards' >&2; exit 2 ;;
missing) exec nothing-of-this-name ;;
wait) trap 'sleep 4; echo committed; exit 143' TERM; echo begun; while :; do sleep 0.1; done ;;
esac
"""
LINES = [f"line {i} of äöü\n" for i in range(1, 61)]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("bin")
    (folder / "vergence").write_text(SCRIPT)
    (folder / "vergence").chmod(0o755)
    with ray_clusters.cluster(cpus=1, path=f"{folder}:{os.environ['PATH']}") as started:
        yield started


@pytest.fixture(autouse=True)
def token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)


def job(name: str, *arguments: str, files: dict[str, str] | None = None) -> Job:
    return Job(name, "evaluate", arguments, files or {}, "/shared/runs")


def followed(jobs: RayJobs, id: str, follow: bool = True) -> str:
    """What a job prints, without Ray's own lines, which come before it or within it."""
    lines = "".join(jobs.logs(id, follow=follow, says=print)).splitlines(keepends=True)
    return "".join(
        each for each in lines if not re.search("Running entrypoint|Runtime env is setting up", each)
    )


def test_a_job_gets_files_home_and_words_and_ends_with_its_exit_code(cluster: Cluster) -> None:
    jobs = RayJobs(cluster.address)
    words = ["show", "recipe.yaml", "a b", "$HOME 'x'"]
    begun = jobs.submit(job("shows", *words, files={"recipe.yaml": "epochs: 3\n"}))
    assert begun.id == "shows-1"
    said = followed(jobs, "shows")
    assert said == "home /shared/runs, in /\nepochs: 3\n<a b><$HOME 'x'>\n"
    ended = jobs.status("shows")
    assert (ended.state, ended.code, ended.reason) == ("failed", 3, "exit code 3")
    assert followed(jobs, "shows-1", follow=False) == said


def test_a_job_runs_once_stops_with_its_commit_and_goes_on_by_the_same_submit(cluster: Cluster) -> None:
    """The commit takes longer than the 3 s that Ray leaves between SIGTERM and SIGKILL."""
    jobs = RayJobs(cluster.address)
    first = jobs.submit(job("runs", "wait"))
    while "begun" not in "".join(jobs.logs("runs", follow=False, says=print)):
        time.sleep(0.2)
    assert jobs.submit(job("runs", "wait")).id == first.id
    with pytest.raises(UserError, match=r"runs runs as runs-1 with another recipe .*vergence jobs stop runs"):
        jobs.submit(job("runs", "count"))
    ended = jobs.stop("runs", says=print)
    assert (ended.id, ended.state, ended.code) == ("runs-1", "stopped", 143)
    assert "committed" in "".join(jobs.logs("runs", follow=False, says=print))
    assert jobs.stop("runs", says=print) == ended
    assert jobs.submit(job("runs", "show", "/dev/null")).id == "runs-2"
    followed(jobs, "runs")
    assert jobs.status("runs-1") == ended
    assert jobs.status("runs").code == 3


def test_a_log_is_followed_through_lost_connections_and_printed_once(cluster: Cluster) -> None:
    remarks: list[str] = []
    with ray_clusters.line(cluster.dashboard_port) as line:
        jobs = RayJobs(line.address)
        jobs.submit(job("counts", "count"))

        def trouble() -> None:
            for down_s in (0.0, 3.0):
                time.sleep(2)
                line.is_down = down_s > 0
                line.cut()
                time.sleep(down_s)
                line.is_down = False

        thread = threading.Thread(target=trouble)
        thread.start()
        text = "".join(jobs.logs("counts", follow=True, says=remarks.append))
        thread.join()
        assert re.findall("line .*\n", text) == LINES
        assert any("trying again" in remark for remark in remarks)
        assert f"{line.address} answers again" in remarks
        assert jobs.status("counts").code == 0


def test_a_job_whose_acceptance_got_lost_is_not_submitted_twice(cluster: Cluster) -> None:
    with ray_clusters.line(cluster.dashboard_port) as line:
        line.loses = b"POST /api/jobs/ "
        assert RayJobs(line.address).submit(job("lost", "show", "/dev/null")).id == "lost-1"
        assert not line.loses
    assert [each.id for each in RayJobs(cluster.address).jobs() if each.name == "lost"] == ["lost-1"]


@pytest.mark.parametrize("wrong", [{"RAY_AUTH_TOKEN": "f" * 32}, {"RAY_AUTH_MODE": "disabled"}])
def test_a_wrong_token_is_refused_in_one_line(
    cluster: Cluster,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    wrong: dict[str, str],
) -> None:
    for name, value in wrong.items():
        monkeypatch.setenv(name, value)
    assert cli.main(["jobs", "list", "--to", "ray", "--address", cluster.address]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert f"{cluster.address}: the cluster does not take our token: set RAY_AUTH_MODE=token" in said
    assert TOKEN not in said


def test_jobs_are_listed_shown_and_named(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", cluster.address)
    submit = [
        "submit",
        "evaluate",
        "refuse",
        "--train",
        "/a",
        "--test",
        "/b",
        "--name",
        "refused",
        "--to",
        "ray",
    ]
    assert cli.main([*submit, "--home", str(tmp_path)]) == 2  # the job's
    output = capsys.readouterr()
    assert "vergence: run x: no such shards" in output.out
    assert "job refused-1 failed: run x: no such shards" in output.err
    assert cli.main(["jobs", "status", "refused", "--to", "ray", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["verb"], shown["state"], shown["exit_code"]) == ("evaluate", "failed", 2)
    assert shown["begun_s"] < shown["ended_s"]
    assert cli.main(["jobs", "list", "--to", "ray", "--json"]) == 0
    assert shown in json.loads(capsys.readouterr().out)
    assert cli.main(["jobs", "list", "--to", "ray"]) == 0
    assert "refused-1" in capsys.readouterr().out
    assert cli.main(["jobs", "logs", "-f", "refused", "--to", "ray"]) == 2
    capsys.readouterr()
    assert cli.main(["jobs", "stop", "refuse", "--to", "ray"]) == 2
    assert "knows no job 'refuse' (did you mean refused?" in capsys.readouterr().err


def test_a_cluster_without_the_command_is_told(cluster: Cluster) -> None:
    jobs = RayJobs(cluster.address)
    jobs.submit(job("bare", "missing"))
    followed(jobs, "bare")
    assert "has no command vergence; start Ray there with it on the PATH" in jobs.status("bare").reason


@pytest.mark.parametrize("address", ["127.0.0.1:8265", "ray://127.0.0.1:10001", "auto", "http://"])
def test_what_is_no_dashboard_is_refused_with_the_form_of_one(address: str) -> None:
    with pytest.raises(UserError, match="give http://HOST:8265"):
        RayJobs(address)


def test_where_nobody_answers_is_told_in_one_line_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    (port,) = ray_clusters.free_ports(1)
    with pytest.raises(
        VergenceError, match=r"no Ray dashboard answers there \(Connection refused\)"
    ) as error:
        RayJobs(f"http://127.0.0.1:{port}").jobs()
    assert "\n" not in str(error.value)


def test_files_that_are_too_large_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dashboard, "MAX_BYTES", 1 << 20)
    with pytest.raises(UserError, match=r"submit: recipe.yaml: 2 MiB, a job takes at most 1"):
        RayJobs().submit(job("large", files={"recipe.yaml": "x" * (2 << 20)}))


@pytest.mark.parametrize("name", ["a b", "a/b", "ä", "x;y"])
def test_a_name_that_ray_cannot_take_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="a job's name has letters"):
        RayJobs().preview(job(name))
