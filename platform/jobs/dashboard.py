"""The REST API of a Ray dashboard, as far as jobs need it: typed failures, an answer in seconds or none."""

import asyncio
import io
import os
import re
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vergence.platform.cluster.address import TOKEN
from vergence.platform.errors import UserError, VergenceError
from vergence.platform.masking import masked

ADDRESS = "http://127.0.0.1:8265"
CONNECT_S = 5.0
ANSWER_S = 60.0  # the first job of a cluster waits for its agent
HEARTBEAT_S = 30.0  # of a log that is followed
MAX_BYTES = 100 << 20  # the dashboard takes no larger package


class Lost(VergenceError):
    """The dashboard does not answer (now)."""


class Unknown(VergenceError):
    """The cluster has no such job (any more)."""


class Taken(Exception):
    """There is a job with this id already."""


def packed(files: Mapping[str, str]) -> bytes:
    """Files for a job's current folder, as Ray takes them. UserError: they are too large."""
    size = sum(len(text.encode()) for text in files.values())
    if size > MAX_BYTES:
        raise UserError(
            f"submit: {', '.join(files)}: {size >> 20} MiB, a job takes at most {MAX_BYTES >> 20}; data belong where "
            "the cluster's nodes find them"
        )
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return buffer.getvalue()


class Dashboard:
    """A dashboard at http(s)://HOST:PORT; all calls raise UserError (address, token) and Lost."""

    def __init__(self, address: str | None = None) -> None:
        given = address or os.environ.get("RAY_API_SERVER_ADDRESS") or ADDRESS
        if not re.match(r"https?://[^/]", given):
            raise UserError(
                f"--address {given}: not the address of a Ray dashboard; give http://HOST:8265 (or https://)"
            )
        self.address = given.rstrip("/")

    def jobs(self) -> list[dict[str, Any]]:
        """Every submitted job that the cluster remembers."""
        return [each for each in self._ask("GET", "/api/jobs/") if each["type"] == "SUBMISSION"]

    def job(self, id: str) -> dict[str, Any]:
        """Raises Unknown."""
        return self._ask("GET", f"/api/jobs/{id}")

    def post_job(self, request: dict[str, Any]) -> None:
        """Raises Taken if there was a job of this id before."""
        try:
            self._ask("POST", "/api/jobs/", json=request)
        except Lost as lost:
            try:
                self.job(request["submission_id"])  # it has arrived, only the answer was lost
            except Unknown:
                raise lost from None
        except VergenceError as error:
            if "already exists" in str(error):
                raise Taken from None
            raise

    def stop(self, id: str) -> None:
        self._ask("POST", f"/api/jobs/{id}/stop")

    def upload(self, name: str, package: bytes) -> None:
        """A package that jobs can have as `gcs://NAME`."""
        self._ask("PUT", f"/api/packages/gcs/{name}", data=package)

    def log(self, id: str) -> str:
        """All that a job has printed; nothing before its node is known."""
        return str(self._ask("GET", f"/api/jobs/{id}/logs")["logs"])

    def tail(self, id: str, skip: int) -> Iterator[str]:
        """What a job prints, without the first `skip` characters, until it ends or the connection does (Lost)."""
        import aiohttp

        with asyncio.Runner() as runner, self._lost():
            session = runner.run(_session())
            try:
                socket = runner.run(
                    session.ws_connect(
                        f"{self.address}/api/jobs/{id}/logs/tail", headers=_token(), heartbeat=HEARTBEAT_S
                    )
                )
                while (message := runner.run(socket.receive())).type is aiohttp.WSMsgType.TEXT:
                    text, skip = message.data[skip:], max(0, skip - len(message.data))
                    if text:
                        yield text
                if socket.close_code != aiohttp.WSCloseCode.OK:
                    raise Lost(f"{self.address}: the log of {id} broke off")
            finally:
                runner.run(session.close())

    def _ask(self, method: str, path: str, **content: Any) -> Any:
        """The answer's JSON. Raises UserError, VergenceError with the server's reason, Lost."""
        import requests

        with self._lost():
            answer = requests.request(
                method, self.address + path, headers=_token(), timeout=(CONNECT_S, ANSWER_S), **content
            )
        if answer.status_code in (401, 403):
            raise UserError(f"{self.address}: {TOKEN}")
        if answer.status_code == 404 and path.startswith("/api/jobs/"):
            raise Unknown(
                f"{self.address} has no job {path.split('/')[3]} (any more: has the cluster been started anew?); the "
                "same submit goes on with its run"
            )
        if answer.status_code in (502, 503, 504):
            raise Lost(f"{self.address} does not answer: {answer.status_code} {answer.reason}")
        if not answer.ok:
            lines = answer.text.strip().splitlines() or [answer.reason]
            raise VergenceError(f"{self.address}{path}: {answer.status_code}: {lines[-1]}")
        return answer.json() if answer.content else None

    @contextmanager
    def _lost(self) -> Iterator[None]:
        """What the network raises, as Lost."""
        import aiohttp
        import requests

        try:
            yield
        except (requests.RequestException, aiohttp.ClientError, OSError, TimeoutError) as error:
            raise Lost(
                f"{masked(self.address)}: no Ray dashboard answers there ({_innermost(error)}); is the cluster running, and "
                "is this the address of its dashboard (port 8265)?"
            ) from None


async def _session() -> Any:
    import aiohttp

    return aiohttp.ClientSession(trust_env=True)


def _innermost(error: BaseException) -> str:
    """The system's own word, at the end of a chain of causes."""
    while cause := error.__cause__ or error.__context__:
        error = cause
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _token() -> dict[str, str]:
    """The header that Ray's clients send, by the same settings."""
    if os.environ.get("RAY_AUTH_MODE") == "disabled":
        return {}
    token = os.environ.get("RAY_AUTH_TOKEN")
    if not token:
        path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
        token = path.read_text().strip() if path.is_file() else ""
    return {"Authorization": f"Bearer {token}"} if token else {}
