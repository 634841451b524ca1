"""What an error of the MLflow store means: an outage, which passes by itself, or a refusal, which does not."""

import re
import sqlite3
from collections.abc import Iterator
from http import HTTPStatus
from http.client import responses

from vergence.platform.masking import masked

MAX_LINE = 300

# what to do about a refusal: the first whose pattern is found in its text
CURES = (
    (
        r"database schema|locate revision",
        "another version of MLflow made this database: use that version, or back it up and run "
        "`mlflow db upgrade` on it",
    ),
    (
        r"experiment (?P<id>\S+) must be in the 'active' state",
        "restore it with `mlflow experiments restore --experiment-id {id}`, or choose another track.experiment",
    ),
    (
        r"run (?P<id>\S+) must be in the 'active' state",
        "restore it with `mlflow runs restore --run-id {id}`, or start a new run with --name",
    ),
    (
        r"HTTP 40[13]|UNAUTHENTICATED|PERMISSION_DENIED",
        "check MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, and what they may do",
    ),
    (
        r"not a database|malformed",
        "move it away: the same command makes a new one and sends all records again",
    ),
    (r"No module named", "install it, or set MLFLOW_TRACKING_URI to another store"),
    (r"", "mend that, or set MLFLOW_TRACKING_URI to another store"),
)


def explain(error: BaseException, uri: str) -> str:
    """One line: that the store at `uri` is away, or what it says and what to do; secrets are masked."""
    if is_outage(error):
        return masked(f"MLflow at {uri} does not answer")
    line = first_line(error)
    found, cure = next((found, cure) for pattern, cure in CURES if (found := re.search(pattern, line)))
    return masked(f"MLflow at {uri} refuses: {line}; {cure.format(**found.groupdict())}")


def is_outage(error: BaseException) -> bool:
    """Whether the same call may succeed later: no connection, a time-out, a server's own trouble, a locked database."""
    import requests
    import sqlalchemy.exc

    status = _http_status(error)
    if status is not None:
        return status >= 500 or status == HTTPStatus.REQUEST_TIMEOUT
    for part in _chain(error):
        if isinstance(part, requests.exceptions.SSLError):
            return False  # a kind of ConnectionError, but a certificate does not mend itself
        if isinstance(part, requests.ConnectionError | requests.Timeout):
            return True
        if isinstance(part, sqlite3.Error):
            return "locked" in str(part)
        if isinstance(part, sqlalchemy.exc.OperationalError) and not isinstance(part.orig, sqlite3.Error):
            return not re.search(
                r"authentication failed|denied|does not exist|unknown database", str(part), re.I
            )
    return False


def first_line(error: BaseException) -> str:
    """The store's own first line, without MLflow's words around it."""
    text, status = str(error), _http_status(error)
    said = ""
    if status is not None and type(error).__name__ != "RestException":
        body = re.search(r"Response body: '(.*)'", text, re.DOTALL)
        said = f"HTTP {status} {responses.get(status, '')}".rstrip()
        text = re.sub(r"<[^>]*>", " ", body[1]) if body else ""  # a proxy answers in HTML
    lines = [" ".join(line.split()) for line in text.splitlines() if line.strip()]
    parts = [part for part in (said, *lines[:1]) if part]
    return (": ".join(parts) or type(error).__name__)[:MAX_LINE]


def _http_status(error: BaseException) -> int | None:
    """The status with which a server turned the request down."""
    from mlflow.exceptions import RestException

    for part in _chain(error):
        if isinstance(part, RestException):
            return part.get_http_status_code()
        found = re.search(r"failed with error code (\d{3})|too many (\d{3}) error responses", str(part))
        if found:
            return int(found[1] or found[2])
    return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error and what it came from; MLflow often raises its own without `from`."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
