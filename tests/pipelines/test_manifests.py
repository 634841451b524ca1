"""`vergence submit --check`."""

import json
from pathlib import Path

import pytest

from vergence.pipelines.cli import main

SOUND = Path(__file__).parents[1] / "platform" / "jobs" / "check" / "sound.yaml"


def test_folder_without_faults_ends_with_0(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "all.yaml").write_text(SOUND.read_text())
    assert main(["submit", "--check", str(tmp_path)]) == 0
    assert capsys.readouterr() == ("", "14 objects in 1 bundle: no faults\n")


def test_fault_is_one_line_and_ends_with_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(SOUND.read_text().replace("entrypoint:", "entryPoint:", 1))
    assert main(["submit", "--check", str(file)]) == 2
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{file}: RayJob/moco: spec.entryPoint: schema: ")
    assert [line.split(": ")[3] for line in lines] == ["schema", "X1"]


def test_faults_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(
        SOUND.read_text().replace("app: ml-flow", "").replace("{app: mlflow}, ports", "{app: ml}, ports")
    )
    assert main(["submit", "--json", "--check", str(file)]) == 2
    (fault,) = json.loads(capsys.readouterr().out)
    assert (fault["object"], fault["path"], fault["rule"]) == ("Service/mlflow", "spec.selector", "B2")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: [", "line 1: expected the node content"),
        ("a: 1\na: 2", "line 2: the key 'a' stands twice"),
        ("- a", "a manifest is a mapping, got list"),
    ],
)
def test_what_is_no_manifest_is_refused_in_one_line(
    text: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(text)
    assert main(["submit", "--check", str(file)]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_nothing_to_check_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["submit", "--check", str(tmp_path / "no")]) == 2
    assert main(["submit", "--check", str(tmp_path)]) == 2
    assert main(["submit"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 3


def test_kustomization_that_does_not_build_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "kustomization.yaml").write_text("resources: [nowhere.yaml]")
    assert main(["submit", "--check", str(tmp_path)]) == 2
    assert str(tmp_path) in capsys.readouterr().err


def test_kustomization_without_kubectl_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "kustomization.yaml").write_text("resources: []")
    monkeypatch.setenv("PATH", "")
    assert main(["submit", "--check", str(tmp_path)]) == 2
    assert "needs kubectl" in capsys.readouterr().err


def test_missing_extra_is_answered_by_pips_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("vergence.platform.jobs.check.schema.find_spec", lambda name: None)
    assert main(["submit", "--check", str(SOUND)]) == 2
    assert capsys.readouterr().err == (
        "vergence: checking manifests needs an extra: pip install 'vergence[k8s]'\n"
    )
