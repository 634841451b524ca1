"""The worked example of docs/adding-a-method.md, put into a copy of the code: the house's tests hold for it."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"`([\w./-]+)`:\n\n((?:```\w+\n.*?```\n\n?)+)", re.DOTALL)
TABLES = ("test_catalog.py", "test_rank_invariance.py")


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packages and the tests' tables, with all that the page adds."""
    copy = tmp_path_factory.mktemp("copy")
    for package in ("methods", "pipelines", "platform"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / package, copy / "vergence" / package, ignore=ignored)
    (copy / "tests" / "methods").mkdir(parents=True)
    for file in [
        ROOT / "pyproject.toml",
        *ROOT.glob("tests/*.py"),
        *(ROOT / "tests/methods" / name for name in TABLES),
    ]:
        shutil.copy(file, copy / file.relative_to(ROOT))
    for name, blocks in BLOCK.findall((ROOT / "docs/adding-a-method.md").read_text()):
        path = copy / name if name.startswith("tests/") else copy / "vergence" / name
        texts = re.findall(r"```\w+\n(.*?)```\n", blocks, re.DOTALL)
        if not path.exists():
            path.write_text(texts[0])
            continue
        whole = path.read_text()
        for text in texts:  # an import goes before the first one, a line of a table to its top
            where = "\nfrom ." if text.startswith("from") else "]] = {\n"
            assert where in whole
            head, found, rest = whole.partition(where)
            whole = (
                head + "\n" + text + "from ." + rest
                if text.startswith("from")
                else head + found + text + rest
            )
        path.write_text(whole)
    return copy


def run(copy: Path, *words: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *words], cwd=copy, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_tables_of_the_tests_and_its_own_hold_for_it(copy: Path) -> None:
    """Two ranks and three among them."""
    told = run(copy, "-m", "pytest", "-p", "no:cacheprovider", "-k", "align_uniform", "tests/methods")
    assert int(re.search(r"(\d+) passed", told)[1]) >= 13


def test_it_is_listed_with_equation_settings_and_recipe(copy: Path) -> None:
    told = run(copy, "-m", "vergence.pipelines.cli", "methods", "align_uniform")
    assert "align = mean_i |u_i - v_i|^2" in told
    assert "method.uniformity_weight" in told
    assert "vergence pretrain align_uniform-cifar10" in told
