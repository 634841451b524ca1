"""The wheel in an environment of its own, away from the repository. The first hour itself: tests/docs/test_first_hour.py."""

import os
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
Shell = Callable[..., str]


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Shell:
    """Runs a command in a folder elsewhere, with the built wheel installed; its dependencies are those of this Python."""
    folder = tmp_path_factory.mktemp("wheel")
    source, environment = folder / "source", folder / "venv"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(source)], check=True)
    pip = ["pip", "--disable-pip-version-check", "--quiet"]
    build = [sys.executable, "-m", *pip, "wheel", "--no-deps", "--wheel-dir", str(folder), str(source)]
    subprocess.run(build, check=True)
    subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
    (packages,) = environment.glob("lib/python*/site-packages")
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    (wheel,) = folder.glob("vergence-*.whl")
    subprocess.run([environment / "bin/python", "-m", *pip, "install", "--no-deps", str(wheel)], check=True)
    away = folder / "away"
    away.mkdir()
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    variables |= {"PATH": f"{environment}/bin:{variables['PATH']}", "VERGENCE_HOME": str(away / "runs")}

    def run(command: str) -> str:
        done = subprocess.run(
            command, shell=True, cwd=away, env=variables, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    return run


@pytest.mark.slow
def test_the_wheel_has_all_of_it_and_trains_away_from_the_repository(shell: Shell) -> None:
    where = shell(
        'python -c "import vergence, vergence.platform.errors as e; print(vergence.__version__, e.__file__)"'
    )
    assert "/venv/lib/" in where
    version = where.split()[0]
    assert shell("vergence --version").startswith(f"vergence {version}")
    assert "mine.yaml" in shell("vergence init mine --from digits")
    shell("vergence shards pack 'sklearn:digits?split=train&size=16' digits/")
    said = shell(
        "vergence pretrain mine.yaml data.train=digits/ epochs=1 schedule.warmup_epochs=0 scale.workers=1"
    )
    assert "step 10/10" in said
    assert "next:\n  vergence look models:/digits-encoder/1 digits/" in said
    shell("vergence embed mine digits/ vectors.parquet")
    shell("vergence look mine digits/ --count 60")
