"""The house: package mapping, the standard library's platform, and a command line that answers at once."""

import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
HEAVY = ("torch", "ray", "mlflow", "deepspeed", "pandas", "cv2", "matplotlib")


def python(code: str, **kwargs: Any) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, **kwargs)
    return done.stdout.strip()


def test_no_platform_package_hides_the_standard_library() -> None:
    assert not (ROOT / "platform" / "__init__.py").exists()
    assert python("import platform; print(platform.system())", cwd=ROOT)
    assert python("import sys; sys.path.insert(0, ''); import platform; print(platform.system())", cwd=ROOT)


def test_no_platform_package_hides_it_in_a_ray_worker() -> None:
    code = """
import ray
ray.init(
    address="local", num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="error",
    object_store_memory=100 << 20,
)
def system():
    import platform
    return platform.system()
print(ray.get(ray.remote(system).remote()))
"""
    assert python(code, cwd=ROOT).splitlines()[-1] == "Linux"


def test_every_folder_with_code_is_a_listed_package() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = {
        ".".join(("vergence", *path.parent.relative_to(ROOT).parts))
        for top in ("platform", "methods", "pipelines")
        for path in (ROOT / top).rglob("*.py")
    }
    assert folders | {"vergence"} == set(listed)


def test_help_loads_nothing_heavy() -> None:
    code = f"""
import sys
from vergence.pipelines import cli
for arguments in ([], ["pretrain"], ["tune"], ["shards"], ["evaluate"], ["embed"], ["export"], ["promote"], ["serve"]):
    try:
        cli.main([*arguments, "--help"])
    except SystemExit as end:
        assert end.code == 0
print([name for name in {HEAVY!r} if name in sys.modules])
"""
    assert python(code).splitlines()[-1] == "[]"


def test_that_test_can_fail() -> None:
    assert python(f"import sys, torch; print([n for n in {HEAVY!r} if n in sys.modules])") != "[]"


def test_command_is_installed() -> None:
    done = subprocess.run(
        [Path(sys.executable).parent / "vergence", "--help"], capture_output=True, text=True, check=True
    )
    assert "pretrain" in done.stdout
