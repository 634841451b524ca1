"""Ports that do not answer, or are no Ray cluster; a real cluster and its token are in test_session.py."""

import http.server
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from vergence.platform.cluster import address
from vergence.platform.errors import UserError


@pytest.fixture(scope="module")
def ports() -> Iterator[dict[str, int]]:
    """Ports of all interfaces (Ray takes localhost for the machine's own address): what listens -> port."""
    patch = pytest.MonkeyPatch()
    patch.setattr(address, "ANSWER_S", 1.0)
    web = http.server.ThreadingHTTPServer(("0.0.0.0", 0), http.server.BaseHTTPRequestHandler)
    threading.Thread(target=web.serve_forever, daemon=True).start()
    silent = socket.create_server(("0.0.0.0", 0))  # the kernel accepts, nobody reads
    full = socket.create_server(
        ("0.0.0.0", 0), backlog=0
    )  # its queue is full: packets are dropped, as by a firewall
    callers = [socket.socket() for _ in range(4)]
    for caller in callers:
        caller.setblocking(False)
        caller.connect_ex(full.getsockname())
    sockets = {"web": web.socket, "silent": silent, "full": full}
    found = {what: listener.getsockname()[1] for what, listener in sockets.items()}
    yield found | {"closed": _closed_port()}
    web.shutdown()
    patch.undo()
    for each in (web.socket, silent, full, *callers):
        each.close()


def _closed_port() -> int:
    with socket.create_server(("0.0.0.0", 0)) as listener:
        return listener.getsockname()[1]


@pytest.mark.parametrize("scheme", ["", "ray://"])
@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("web", "something else listens there"),
        ("silent", "no answer within 1 s"),
        ("full", "no answer within 1 s"),
        ("closed", "Connection refused"),
    ],
)
def test_what_is_no_ray_cluster_is_told_in_one_line_at_once(
    ports: dict[str, int], what: str, reason: str, scheme: str
) -> None:
    target = f"{scheme}127.0.0.1:{ports[what]}"
    begin = time.monotonic()
    with pytest.raises(UserError) as error:
        address.check_address(target)
    assert time.monotonic() - begin < 5
    assert str(error.value).startswith(f"RAY_ADDRESS={target}: no Ray cluster answers there ({reason})")
    assert "\n" not in str(error.value)


def test_a_name_that_no_host_has(ports: dict[str, int]) -> None:
    with pytest.raises(UserError, match=r"no Ray cluster answers there \("):
        address.check_address("no-host.invalid:6379")


@pytest.mark.parametrize("wrong", ["head", ":6379", "10.0.0.1:port", "http://127.0.0.1:8265", "ray://head"])
def test_what_is_no_address_is_refused_with_the_form_of_one(wrong: str) -> None:
    with pytest.raises(UserError, match="give HOST:6379, or ray://HOST:10001"):
        address.check_address(wrong)
