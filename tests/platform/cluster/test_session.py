"""Sessions of our own, of a cluster and of the caller, in processes of their own with a real `ray start` beside them."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from vergence.platform.cluster import session

TOKEN = "0123456789abcdef" * 2
NEED = "Need(ScaleConfig(workers={workers}), readers=1, reader_cpus=1.0)"

OWN = f"""
import importlib.util, json, os, signal, sys
sys.path.insert(0, "LIBRARY")
signal.signal(signal.SIGTERM, signal.SIG_IGN)
import ray
before = dict(os.environ)
from vergence.platform.cluster.capacity import Need, ScaleConfig
from vergence.platform.cluster.session import opened, place

def imports():
    return {{name: importlib.util.find_spec(name).origin for name in ("timm", "statistics", "mine")}}

with opened({NEED.format(workers=1)}) as cluster:
    found = dict(
        place=cluster.place,
        printed_on_stderr=sys.stdout is sys.stderr,
        cpus=ray.cluster_resources()["CPU"],
        address=ray.get_runtime_context().gcs_address,
        missing=cluster.missing(),
        inside=place(),
        folder=ray._private.worker._global_node.get_temp_dir_path(),
        driver=imports(),
        worker=ray.get(ray.remote(imports).remote()),
    )
found |= dict(
    ended=not ray.is_initialized(),
    gone=not os.path.exists(found["folder"]),
    sigterm=signal.getsignal(signal.SIGTERM) is signal.SIG_IGN,
    environment=sorted(dict(os.environ.items() ^ before.items())),
)
print(json.dumps(found))
"""

CLUSTER = f"""
import json, os, time
import ray
from vergence.platform.cluster.capacity import Need, ScaleConfig
from vergence.platform.cluster.session import has_other_machines, nodes, opened, place
from vergence.platform.errors import UserError

def soon(asks):
    deadline = time.monotonic() + 20  # Ray's nodes tell each other what is free
    while not (answer := asks()) and time.monotonic() < deadline:
        time.sleep(0.1)
    return answer

@ray.remote(num_cpus=2)
class Holder:
    def ready(self):
        return True

found = dict(before=place(), others=has_other_machines())
with opened({NEED.format(workers=1)}) as cluster:
    found |= dict(
        place=cluster.place, nodes=nodes(), missing=cluster.missing(), pending=cluster.pending()
    )
    holder = Holder.remote()
    ray.get(holder.ready.remote())
    found["held"] = soon(cluster.missing)
    group = ray.util.placement_group([dict(CPU=1), dict(CPU=1)])
    found["held_pending"] = soon(cluster.pending)
    ray.util.remove_placement_group(group)
    ray.kill(holder)
found["left"] = not ray.is_initialized()

ray.init(os.environ["RAY_ADDRESS"], log_to_driver=False, logging_level="error")  # a caller's session
mine = ray.put("mine")
try:
    with opened({NEED.format(workers=2)}):
        pass
except UserError as error:
    found["too_small"] = str(error)
with opened({NEED.format(workers=1)}) as cluster:
    found["joined"] = cluster.place
found |= dict(open=ray.is_initialized(), mine=ray.get(mine))
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """A folder with a short path, as sockets need it."""
    with tempfile.TemporaryDirectory(prefix="vg-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def foreign(place: Path) -> Iterator[str]:
    """Address of a cluster of 3 CPUs that somebody else has started on this machine, with a token."""
    port = 6400 + os.getpid() % 3000
    command = [str(Path(sys.executable).parent / "ray"), "start", "--head", "--block", "--num-cpus=3"]
    options = {
        "port": port, "ray-client-server-port": port + 1, "dashboard-agent-listen-port": port + 2,
        "temp-dir": place / "ray", "include-dashboard": False,
    }  # fmt: skip
    environment = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}
    with (place / "log").open("w") as log:
        process = subprocess.Popen(
            [*command, "--object-store-memory=100000000", *(f"--{key}={value}" for key, value in options.items())],
            env=environment, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    try:
        deadline = time.monotonic() + 120
        while "Ray runtime started" not in (place / "log").read_text():
            assert process.poll() is None, (place / "log").read_text()
            assert time.monotonic() < deadline, (place / "log").read_text()
            time.sleep(0.1)
        yield (place / "ray" / "ray_current_cluster").read_text()
    finally:
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        for member in family:
            member.kill()
        process.wait()


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds what a careless import would take for the real thing."""
    folder = tmp_path_factory.mktemp("here")
    for name in ("timm/__init__.py", "statistics.py", "random.py"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("raise ImportError('taken from the current folder')")
    (folder / "ray").mkdir()
    return folder


def python(code: str, here: Path, **environment: str) -> Any:
    """What a script that is started in `here` prints at its end, as JSON."""
    script = here.parent / "script.py"
    script.write_text(code)
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, script], cwd=here, env=inherited | environment, capture_output=True, text=True, timeout=180,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def own(foreign: str, here: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a session of our own found, where Ray's folder is too deep for sockets and names the foreign cluster."""
    deep = tmp_path_factory.mktemp("deep") / ("d" * 60)
    (deep / "ray").mkdir(parents=True)
    (deep / "ray" / "ray_current_cluster").write_text(foreign)
    library = tmp_path_factory.mktemp("library")
    (library / "mine.py").touch()
    found = python(OWN.replace("LIBRARY", str(library)), here, TMPDIR=str(deep))
    return found | {"library": library, "foreign": foreign, "deep": deep}


def test_a_session_of_our_own_joins_no_cluster_that_it_finds(own: dict[str, Any]) -> None:
    assert own["place"] == "own"
    assert own["address"] != own["foreign"]
    assert own["cpus"] == 2  # as declared, not the 3 of the foreign one
    assert own["missing"] is None
    assert own["inside"] == "caller"


def test_a_deep_temporary_folder_is_replaced_by_a_short_one_that_goes_again(own: dict[str, Any]) -> None:
    assert len(str(own["deep"])) > session.SOCKET_BYTES - session.BELOW_FOLDER
    assert own["folder"].startswith("/tmp/vergence-")
    assert own["gone"]


def test_what_ray_prints_does_not_get_among_what_was_asked_for(own: dict[str, Any]) -> None:
    assert own["printed_on_stderr"]


def test_the_process_is_left_as_it_was(own: dict[str, Any]) -> None:
    assert own["ended"]
    assert own["sigterm"]
    assert own["environment"] == []


def test_workers_import_what_the_driver_imports_and_nothing_from_the_current_folder(
    own: dict[str, Any], here: Path
) -> None:
    assert own["worker"] == own["driver"]
    assert not any(origin.startswith(str(here)) for origin in own["worker"].values())
    assert own["worker"]["mine"] == str(own["library"] / "mine.py")  # a folder that the driver has put first


@pytest.fixture(scope="module")
def cluster(foreign: str, here: Path) -> dict[str, Any]:
    """What a driver found that connects to the foreign cluster, by RAY_ADDRESS and as its caller."""
    return python(CLUSTER, here, RAY_ADDRESS=foreign, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=TOKEN)


def test_a_cluster_is_joined_and_left(cluster: dict[str, Any]) -> None:
    assert cluster["before"] == cluster["place"] == "cluster"
    assert [node[:2] for node in cluster["nodes"]] == [[3, 0]]
    assert not cluster["others"]  # no machine to ask: this one trains
    assert cluster["missing"] is None
    assert cluster["pending"] is None
    assert cluster["left"]


def test_what_others_hold_in_a_cluster_is_told(cluster: dict[str, Any]) -> None:
    assert "1 workers x 1 CPUs + 1 readers x 1 CPUs = 2 CPUs, got 1 free" in cluster["held"]
    assert cluster["held_pending"] == "Ray has no room for 1 workers of 1 CPUs: 1 CPUs are free"


def test_a_cluster_that_is_too_small_is_refused_with_the_arithmetic(cluster: dict[str, Any]) -> None:
    assert (
        "2 workers x 1 CPUs + 2 readers x 1 CPUs = 4 CPUs, got 3 in the Ray cluster" in cluster["too_small"]
    )


def test_a_session_of_the_caller_is_joined_and_stays_open(cluster: dict[str, Any]) -> None:
    assert cluster["joined"] == "caller"
    assert cluster["open"]
    assert cluster["mine"] == "mine"


@pytest.mark.parametrize(
    "mode", [{"RAY_AUTH_MODE": "disabled"}, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "f" * 32}]
)
def test_a_wrong_token_is_told_in_one_line(foreign: str, here: Path, mode: dict[str, Any]) -> None:
    code = """
import json
from vergence.platform.cluster.address import check_address
from vergence.platform.errors import UserError
try:
    check_address("ADDRESS")
except UserError as error:
    print(json.dumps(str(error)))
"""
    said = python(code.replace("ADDRESS", foreign), here, **mode)
    assert said.startswith(
        f"RAY_ADDRESS={foreign}: the cluster does not take our token: set RAY_AUTH_MODE=token"
    )
    assert "\n" not in said


def test_a_folder_that_fits_is_left_to_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", "/tmp")
    with session._session_folder() as folder:
        assert folder is None
