"""`vergence promote`: what it measures, decides and moves, and what is left when it is killed or the store fails."""

import json
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
from shard_files import png, write_shard
from tiny_encoder import make_card, make_encoder

from vergence.pipelines import cli, promote
from vergence.platform.encoders import registry, versions
from vergence.platform.encoders.encoder import LoadedEncoder
from vergence.platform.encoders.export import export_encoder
from vergence.platform.encoders.versions import GATE, Aliases, aliases_of
from vergence.platform.errors import VergenceError
from vergence.platform.evaluate.report import read_report
from vergence.platform.mlflow_store import artifacts_of, store, tracking_uri

ROOT = Path(__file__).resolve().parent.parent.parent
NAME = "tinted"
WAITING = Aliases(candidate=2, champion=1, previous=None)


def write(path: Path, seed: int, count: int) -> str:
    """Noise with a tint that is its class."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, count)
    images = rng.integers(0, 200, (count, 16, 16, 3))
    images[np.arange(count), :, :, labels] += rng.integers(20, 50, (count, 1, 1))
    samples = [
        (f"{i:04d}", {"png": png(image.astype(np.uint8)), "cls": str(label).encode()})
        for i, (image, label) in enumerate(zip(images, labels))
    ]
    return str(write_shard(path, samples))


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """(train, test): a registry in which version 1 of NAME is blind to colours and version 2 is not."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VERGENCE_HOME", str(home))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        seeing, blind = make_encoder(), make_encoder()
        stem = blind.backbone.conv1.weight
        stem.data[:] = stem.data.mean(dim=1, keepdim=True)
        uri = tracking_uri()
        with store(uri) as client:
            experiment = client.create_experiment("tint", artifact_location=artifacts_of(uri, "tint"))
            runs = [client.create_run(experiment).info.run_id for _ in range(2)]
        for name, encoder, run_id in zip(("blind", "seeing"), (blind, seeing), runs):
            folder = export_encoder(encoder, make_card(name=name), home / name / "exports")
            registry.register(folder, NAME, run_id=run_id, tags={}, tracking_uri=uri)
        yield write(home / "train.tar", 0, 120), write(home / "test.tar", 1, 150)


@pytest.fixture(autouse=True)
def fresh(shop: tuple[str, str]) -> None:
    """As after training: version 2 waits, nothing is decided."""
    with store(tracking_uri()) as client:
        client.set_registered_model_alias(NAME, "champion", "1")
        client.set_registered_model_alias(NAME, "candidate", "2")
        client.delete_registered_model_alias(NAME, "previous")
        client.delete_registered_model_tag(NAME, GATE)
        for version in ("1", "2"):
            for tag in client.get_model_version(NAME, version).tags:
                client.delete_model_version_tag(NAME, version, tag)


def aliases() -> Aliases:
    with store(tracking_uri()) as client:
        return aliases_of(client, NAME, "test")


def tags(version: int) -> dict[str, str]:
    with store(tracking_uri()) as client:
        found: dict[str, str] = client.get_model_version(NAME, str(version)).tags
    return found


def run(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> str:
    assert cli.main(["promote", *arguments]) == code
    said = capsys.readouterr()
    assert code == 0 or said.err.count("\n") == 1
    return said.err if code else said.out


def test_a_better_candidate_becomes_champion_with_reports_and_reason(
    shop: tuple[str, str], capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = ["--train", shop[0], "--test", shop[1]]
    said = run(capsys, NAME, *data, "--dry-run")
    assert f"{NAME} version 2: would be promoted: knn-v1" in said
    assert "champion would be version 2, previous version 1" in said
    assert (aliases(), tags(1), tags(2)) == (WAITING, {}, {})

    done = json.loads(run(capsys, NAME, *data, "--json"))
    assert (done["decision"], done["version"], done["champion"], done["previous"]) == ("promoted", 2, 2, 1)
    verdict = done["verdict"]
    assert 0 < verdict["low"] <= verdict["difference"] <= verdict["high"]
    assert verdict["candidate"] - verdict["champion"] == pytest.approx(verdict["difference"])
    assert aliases() == Aliases(candidate=None, champion=2, previous=1)
    assert tags(2)["decision"] == "promoted"
    [reason] = [value for key, value in tags(2).items() if key.startswith("decision.")]
    assert f"interval {verdict['low']:+.4f} to {verdict['high']:+.4f}" in reason

    for version, figure in ((1, verdict["champion"]), (2, verdict["candidate"])):
        with store(tracking_uri()) as client:
            model = client.get_logged_model(client.get_model_version(NAME, str(version)).source.split("/")[1])
            files = mlflow.artifacts.download_artifacts(f"models:/{NAME}/{version}", dst_path=str(tmp_path))
        [report] = [read_report(path) for path in (Path(files) / "evaluations").glob("knn-v1-*")]
        assert report.scores == {"knn-v1": figure}
        assert report.encoder.name == f"models:/{NAME}/{version}"
        told = {(each.value, each.dataset_digest) for each in model.metrics if each.key == "knn-v1"}
        assert told == {(figure, report.data.test.digest[:36])}

    assert "nothing to do: there is no candidate; champion is version 2" in run(capsys, NAME)

    said = run(capsys, NAME, "--rollback", "--dry-run")
    assert "would be rolled back" in said
    assert aliases().champion == 2
    assert "version 1 is champion again" in run(capsys, NAME, "--rollback")
    assert aliases() == Aliases(candidate=None, champion=1, previous=1)
    assert tags(2)["decision"] == "rolled back"
    assert "none was champion before" in run(capsys, NAME, "--rollback", code=2)


def test_what_is_not_better_by_the_margin_stays_candidate_and_the_model_remembers_by_what(
    shop: tuple[str, str], capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, test = (Path(path) for path in shop)
    monkeypatch.chdir(train.parent)
    said = run(capsys, NAME, "--train", train.name, "--test", test.name, "--margin", "0.9")
    assert f"{NAME} version 2: declined: knn-v1" in said
    assert "not above the margin 0.9" in said
    assert aliases() == WAITING
    assert tags(2)["decision"] == "declined"

    def fails(self: LoadedEncoder, images: Any) -> Any:
        raise AssertionError("embedded again")

    monkeypatch.setattr(LoadedEncoder, "__call__", fails)
    monkeypatch.chdir(tmp_path)  # the shards are remembered from wherever
    again = promote(NAME)
    assert (again.decision, again.verdict is not None and again.verdict.margin) == ("declined", 0.9)
    other = promote(NAME, protocol="linear", margin=0.0)
    assert other.reason.startswith("linear-v1")
    assert other.decision == "promoted"


KILLED = """
import os, signal, sys
from mlflow import MlflowClient
from vergence.pipelines import cli
move = MlflowClient.set_registered_model_alias
def killed(self, name, alias, version):
    if alias == "champion":
        os.kill(os.getpid(), signal.SIGKILL)
    move(self, name, alias, version)
MlflowClient.set_registered_model_alias = killed
cli.main(sys.argv[1:])
"""


def test_killed_between_the_aliases_the_champion_is_the_old_one_and_the_same_command_finishes(
    shop: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["promote", NAME, "--train", shop[0], "--test", shop[1]]
    done = subprocess.run([sys.executable, "-c", KILLED, *command], capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert aliases() == Aliases(candidate=2, champion=1, previous=1)
    assert "promoted" in run(capsys, *command[1:])
    assert aliases() == Aliases(candidate=None, champion=2, previous=1)


def broken(*arguments: Any, **more: Any) -> None:
    raise ConnectionError("the store is gone")


@pytest.mark.parametrize("step", ["log_batch", "set_model_version_tag", "set_registered_model_alias"])
def test_a_store_that_fails_at_any_step_leaves_the_aliases_as_they_were(
    step: str, shop: tuple[str, str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(mlflow.MlflowClient, step, broken)
        said = run(capsys, NAME, "--train", shop[0], "--test", shop[1], code=1)
    assert said.startswith(f"vergence: promote {NAME}: MLflow at ")
    assert aliases() == WAITING


def test_aliases_that_moved_meanwhile_are_left_alone(
    shop: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    record: Callable[..., None] = versions.record

    def moves(client: Any, *arguments: Any) -> None:
        record(client, *arguments)
        client.set_registered_model_alias(NAME, "champion", "2")

    monkeypatch.setattr(versions, "record", moves)
    with pytest.raises(
        VergenceError, match=r"have moved .* from candidate 2, champion 1 to candidate 2, champion 2"
    ):
        promote(NAME, *shop)
    assert aliases() == Aliases(candidate=2, champion=2, previous=None)
    assert promote(NAME).decision == "nothing to do"
    assert aliases() == Aliases(candidate=None, champion=2, previous=None)


def test_without_a_champion_the_candidate_becomes_it_unmeasured(capsys: pytest.CaptureFixture[str]) -> None:
    with store(tracking_uri()) as client:
        client.delete_registered_model_alias(NAME, "champion")
    assert "promoted: there was no champion" in run(capsys, NAME)
    assert aliases() == Aliases(candidate=None, champion=2, previous=None)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["tintd"], "did you mean tinted?"),
        ([NAME], "nothing to measure by yet; give --train SHARDS --test SHARDS"),
        ([NAME, "--train", "a.tar"], "--train and --test come together"),
        ([NAME, "--train", "a.tar", "--test", "b.tar"], "a.tar: matches no shard"),
        ([NAME, "--train", "a", "--test", "b", "--margin", "2"], "--margin: got 2, which is in top-1"),
        ([NAME, "--train", "a", "--test", "b", "--protocol", "kn"], "did you mean knn?"),
        ([NAME, "--rollback", "--margin", "0"], "--rollback: measures nothing, so it takes no --margin"),
        ([NAME, "--rollback"], "none was champion before"),
    ],
)
def test_mistakes_are_one_line_and_change_nothing(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said in run(capsys, *arguments, code=2)
    assert (aliases(), tags(2)) == (WAITING, {})


def figures(version: int, key: str) -> list[float]:
    """Values of a metric of the version's logged model."""
    with store(tracking_uri()) as client:
        model_id = client.get_model_version(NAME, str(version)).source.removeprefix("models:/")
        return [metric.value for metric in client.get_logged_model(model_id).metrics if metric.key == key]


def test_a_registry_that_takes_no_report_costs_only_a_line_unless_it_was_asked_to(
    shop: tuple[str, str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object) -> None:
        raise VergenceError("registered by something else than Vergence")

    monkeypatch.setattr(versions, "record", refuse)
    command = ["evaluate", f"models:/{NAME}/1", "--train", shop[0], "--test", shop[1]]
    assert cli.main(command) == 0
    assert "not recorded: registered by something else" in capsys.readouterr().out
    assert cli.main([*command, "--record"]) == 1


def test_evaluate_keeps_a_report_with_its_version(
    shop: tuple[str, str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    command = ["evaluate", f"models:/{NAME}@champion", "--train", shop[0], "--test", shop[1]]
    before = figures(1, "linear-v1")  # the pages' commands may have been here
    assert cli.main([*command, "--protocol", "linear", "--no-record"]) == 0
    assert "recorded" not in capsys.readouterr().out
    assert figures(1, "linear-v1") == before
    assert cli.main([*command, "--protocol", "linear"]) == 0
    assert f"recorded: models:/{NAME}/1" in capsys.readouterr().out
    with store(tracking_uri()):
        files = mlflow.artifacts.download_artifacts(f"models:/{NAME}/1", dst_path=str(tmp_path))
    kept = [path for path in (Path(files) / "evaluations").iterdir() if path.name.startswith("linear-v1-")]
    top1 = [json.loads(path.read_text())["results"]["encoder"]["linear-v1"]["top1"] for path in kept]
    assert figures(1, "linear-v1")[len(before) :] == [top1[-1]]
    command[1] = "seeing"
    assert cli.main(command) == 0  # of no registry, and so of no version
    assert "recorded" not in capsys.readouterr().out
    assert cli.main([*command, "--record"]) == 2
    assert "--record: seeing is not in the registry" in capsys.readouterr().err


@pytest.mark.parametrize("page", ["docs/registry.md", "README.md"])
def test_the_commands_of_the_pages_work(
    page: str,
    shop: tuple[str, str],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    lines = re.findall(r"^(?:\$|\.venv/bin/)\s?(?:vergence) (.*)$", (ROOT / page).read_text(), re.MULTILINE)
    mine = [line for line in lines if line.split()[0] in ("promote", "export") or "--record" in line]
    assert len(mine) >= 3
    for line in mine:
        command = shlex.split(line, comments=True)
        for ours, theirs in (
            (r"digits-encoder|simclr-cifar10(?!/)", NAME),
            (r"\S+/train-\*\.tar", shop[0]),
            (r"\S+/test-\*\.tar", shop[1]),
        ):
            command = [re.sub(ours, theirs, word) for word in command]
        assert cli.main(command) == 0, capsys.readouterr().err
