"""What is said of a job before anything is sent."""

import argparse
from collections.abc import Callable
from pathlib import Path

import pytest

from vergence.pipelines import cli, submit
from vergence.pipelines.recipe import Recipe
from vergence.platform import yaml
from vergence.platform.jobs.job import Job

PRETRAIN = ["pretrain", "simclr-cifar10", "data.train=/data/train-*.tar", "--to", "ray", "--home", "/shared"]


@pytest.fixture
def job_of(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Job]:
    """The job that a command line describes."""

    def described(*arguments: str) -> Job:
        jobs: list[Job] = []
        monkeypatch.setattr(submit, "place", lambda options: argparse.Namespace(preview=jobs.append))
        assert cli.main(["submit", *arguments, "--dry-run"]) == 0
        return jobs[0]

    return described


def test_a_run_takes_its_whole_recipe_along(job_of: Callable[..., Job]) -> None:
    job = job_of(*PRETRAIN, "optim.lr=0.5", "scale.workers=3")
    assert job.command() == ["vergence", "pretrain", "recipe.yaml", "--name", "simclr-cifar10"]
    assert job.command("/etc/vergence")[2] == "/etc/vergence/recipe.yaml"
    recipe = Recipe.parse(yaml.parse(job.files["recipe.yaml"], "recipe"), "recipe")
    assert (recipe.optim.lr, recipe.data.train) == (0.5, "/data/train-*.tar")
    assert job.need is not None
    assert (job.need.scale.workers, job.home) == (3, "/shared")


def test_a_fork_stays_one_and_another_setting_is_another_job(job_of: Callable[..., Job]) -> None:
    job = job_of(*PRETRAIN, "--name", "first", "--fork", "second")
    assert job.arguments == ["recipe.yaml", "--name", "first", "--fork", "second"]
    assert job.digest == job_of(*PRETRAIN, "--fork", "second", "--name", "first").digest
    assert job.digest != job_of(*PRETRAIN, "--name", "first", "--fork", "second", "optim.lr=0.5").digest
    assert job.digest != job_of(*PRETRAIN, "--name", "first").digest


def test_a_search_takes_recipe_and_search_along(job_of: Callable[..., Job]) -> None:
    words = [
        "simclr-cifar10",
        "simclr-temperature",
        "data.train=/data/*.tar",
        "search.budget.epochs=9",
        "optim.lr=0.5",
    ]
    job = job_of("tune", *words, "--retrain", "--name", "second", "--to", "ray")
    assert job.command() == [
        "vergence",
        "tune",
        "recipe.yaml",
        "search.yaml",
        "--name",
        "second",
        "--retrain",
    ]
    recipe, search = (yaml.parse(job.files[name], name) for name in ("recipe.yaml", "search.yaml"))
    assert (recipe["optim"]["lr"], search["budget"]["epochs"]) == (0.5, 9)
    assert job.need is not None


def test_the_words_of_other_verbs_are_handed_on(job_of: Callable[..., Job]) -> None:
    words = ["a", "b", "--train", "/x y", "--test", "/z", "--protocol", "knn,linear", "--baselines"]
    job = job_of("evaluate", *words, "--name", "figures", "--to", "ray")
    assert job.command() == ["vergence", "evaluate", *words]
    assert (job.name, job.need) == ("figures", None)
    embed = job_of("embed", "first", "/data/test.tar", "/out", "--name", "vectors", "--to", "ray")
    assert embed.arguments == ["first", "/data/test.tar", "/out"]
    assert embed.need is None
    actors = job_of(
        "embed",
        "first",
        "/test.tar",
        "/out",
        "--workers",
        "3",
        "--device",
        "cuda",
        "--name",
        "v",
        "--to",
        "ray",
    )
    assert actors.need is not None
    assert (actors.need.num_workers, actors.need.gpus) == (3, 3)


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        ([*PRETRAIN, "data.train=cifar/*.tar"], "data.train=cifar/*.tar"),
        (["embed", "first", "cifar/test.tar", "/out", "--name", "v", "--to", "ray"], "source=cifar/test.tar"),
        (["embed", "first", "/test.tar", "out", "--name", "v", "--to", "ray"], "out=out"),
        (["evaluate", "a", "--train", "x", "--test", "/y", "--name", "v", "--to", "ray"], "train=x"),
        (["evaluate", "runs/a/encoder.pt2", "--train", "/x", "--test", "/y", "--name", "v", "--to", "ray"],
         "encoder=runs/a/encoder.pt2"),
    ],
)  # fmt: skip
def test_a_path_that_means_this_folder_is_refused(
    arguments: list[str], what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["submit", *arguments]) == 2
    assert f"submit: {what}: the job runs elsewhere; give the absolute path" in capsys.readouterr().err


def test_a_mistake_in_the_recipe_is_told_before_anything_is_sent(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["submit", *PRETRAIN, "optim.lrr=1"]) == 2
    assert "optim.lrr is not a setting (did you mean lr?" in capsys.readouterr().err


def test_an_open_scale_is_found_on_ray_and_refused_for_pods(
    job_of: Callable[..., Job], capsys: pytest.CaptureFixture[str]
) -> None:
    auto = ["scale.workers=auto", "scale.gpus_per_worker=auto"]
    search = ["tune", "simclr-cifar10", "simclr-temperature", "data.train=/data/*.tar"]
    for words in (PRETRAIN[:3], search):
        job = job_of(*words, *auto, "--to", "ray", "--home", "/shared")
        scale = yaml.parse(job.files["recipe.yaml"], "recipe")["scale"]
        assert (scale["workers"], scale["gpus_per_worker"], job.need) == ("auto", "auto", None)
        assert cli.main(["submit", *words, *auto, "--to", "k8s", "--dry-run"]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "give numbers, such as scale.workers=4 scale.gpus_per_worker=1" in line


def test_weights_named_by_a_path_of_this_folder_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["submit", *PRETRAIN, "encoder.pretrained=here/w.safetensors"]) == 2
    assert "submit: encoder.pretrained=here/w.safetensors: the job runs elsewhere" in capsys.readouterr().err


@pytest.mark.parametrize("home", [[], ["--home", "runs"]])
def test_a_cluster_needs_a_state_folder(
    home: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("VERGENCE_HOME", raising=False)
    assert cli.main(["submit", *PRETRAIN[:-2], *home, "--dry-run"]) == 2
    assert "where does the cluster keep runs?" in capsys.readouterr().err


def test_a_dry_run_prints_request_and_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["submit", *PRETRAIN, "--dry-run"]) == 0
    request, recipe = (yaml.parse(each, "printed") for each in capsys.readouterr().out.split("---\n"))
    assert request["submission_id"] == "simclr-cifar10-1"
    words = 'exec vergence pretrain "$files"/recipe.yaml --name simclr-cifar10'
    assert request["entrypoint"] == f"files=$PWD; cd / && {words}"
    assert request["runtime_env"]["env_vars"]["VERGENCE_HOME"] == "/shared"
    assert request["runtime_env"]["working_dir"] == "gcs://simclr-cifar10-1.zip"
    assert recipe["method"]["name"] == "simclr"


@pytest.mark.parametrize("verb", ["submit", "jobs"])
def test_help_has_examples(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main([verb, "--help"])
    assert f"  vergence {verb} " in capsys.readouterr().out


def test_home_is_that_of_the_environment(
    job_of: Callable[..., Job], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("VERGENCE_HOME", str(tmp_path))
    assert job_of(*PRETRAIN[:-2]).home == str(tmp_path)
