"""The image's steps, run into a clean prefix: they are the Containerfile's, and no container engine runs here."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_containerfile_runs_the_script_and_is_not_root() -> None:
    text = (ROOT / "k8s" / "image" / "Containerfile").read_text()
    assert "sh /src/k8s/image/install.sh" in text
    assert len(re.findall("^FROM", text, re.MULTILINE)) == 2
    assert re.findall("^USER (.*)", text, re.MULTILINE) == ["1000:1000"]
    assert "HEALTHCHECK" in text
    assert re.search(r"^ARG BASE=\S+:\d+\.\d+\.\d+", text, re.MULTILINE)
    assert not re.search("latest|password|token", text.lower())


@pytest.mark.slow
def test_steps_of_the_image_install_a_vergence_that_works(tmp_path: Path) -> None:
    source, prefix = tmp_path / "source", tmp_path / "prefix"
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    for name in filter(None, listed.split("\0")):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes((ROOT / name).read_bytes())
    clean = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    steps = {"SOURCE": str(source), "PREFIX": str(prefix), "VARIANT": "cpu", "PYTHON": sys.executable}
    script = ["sh", str(source / "k8s" / "image" / "install.sh")]
    done = subprocess.run(script, env={**clean, **steps}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "\nvergence 0.1.0 ray 2.60.0 torch 2.13.0" in f"\n{done.stdout}"
    for path in list(source.iterdir()):  # what works does so without the tree
        path.rename(tmp_path / f"moved-{path.name}")
    home = tmp_path / "home"
    home.mkdir()
    words = ["pretrain", "digits", "--dry-run", "data.train=/nowhere/*.tar"]
    tried = subprocess.run(
        [prefix / "bin" / "vergence", *words], env=clean, cwd=home, capture_output=True, text=True
    )
    assert tried.returncode == 2
    assert "/nowhere/*.tar" in tried.stderr
    schemas = list(prefix.glob("lib/python3*/site-packages/vergence/platform/jobs/check/schemas/*.json"))
    assert len(schemas) == 9
