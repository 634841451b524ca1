"""Objects in stores, by URL: s3://, gs://, az:// and http(s)://.

obstore speaks to all of them: the object_store of the Arrow project, one library without others behind it. Credentials
are those of the environment, of instances and pods, and for S3 of the files of the AWS tools (~/.aws); AWS_ENDPOINT_URL
names another server that speaks S3. A user's path is a local file wherever it is no URL.

What fails for a while (5xx, 429, resets, time-outs, half an answer) is asked for again, with growing pauses, until the
patience is over. What will not change (no such bucket, not allowed) is raised at once.
"""

import logging
import os
import random
import re
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta
from functools import cached_property, lru_cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar
from urllib.parse import unquote, urlsplit

from vergence.platform.errors import UserError, VergenceError
from vergence.platform.masking import masked

if TYPE_CHECKING:
    from obstore.store import ObjectStore

SCHEMES = ("s3", "gs", "az", "http", "https")
INSTALL = 'pip install "vergence[stores]"'
AT_ONCE = 16  # requests of a process to one store
PATIENCE_S = 300.0
CONNECT_S, ANSWER_S = 10, 60  # after which a connection, or an answer as a whole, is given up
CREDENTIALS_S = 600  # after which they are asked for again: those of boto may end that soon
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.2, 15.0
SILENT_S = 5.0  # after which somebody who waits is told for what
# of a large file that is written: bytes of a part, at least; parts of it, at most, for S3; those on their way, so that
# each is there before it is given up; how often one, or a page of a listing, is asked for again, with obstore's own pauses
LEAST_PART, MOST_PARTS, PARTS_AT_ONCE, PART_RETRIES = 5 << 20, 9_000, 4, 8
PIECE = 8 << 20  # bytes a request, where an object is read from end to end
_CURES = {
    "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE; AWS_ENDPOINT_URL for a server of your own",
    "gs": "set GOOGLE_APPLICATION_CREDENTIALS, or run `gcloud auth application-default login`",
    "az": "set AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
}

_INSTANCE = ("computeMetadata", "metadata/identity")  # of an instance, who is asked last for credentials
_STATUS = re.compile(r"status code: (\d+)")

T = TypeVar("T")
log = logging.getLogger(__name__)


class Object(NamedTuple):
    """url: or a local file's absolute path, where both are meant.

    version: changes when the object does: its ETag, or the time of its last change where the store has none.
    """

    url: str
    size: int
    version: str


class NotThere(VergenceError):
    """There is no such object."""


class Changed(VergenceError):
    """An object is not the one that was meant: read in another version, or written by somebody else meanwhile."""


class Away(VergenceError):
    """The store has not answered as it should for longer than the patience."""


def is_url(text: str | os.PathLike[str]) -> bool:
    """Whether this names an object in a store. Raises UserError: a URL of a scheme that no store here has."""
    scheme, found, _ = os.fspath(text).partition("://")
    if not found or not scheme.isalnum():
        return False
    if scheme not in SCHEMES:
        raise UserError(
            f"{text}: no store is reached by {scheme}://; there are {', '.join(SCHEMES)}, and plain paths"
        )
    return True


def name_of(url: str) -> str:
    """The last part of a URL or path, as files are named: `a b.tar` of http://host/a%20b.tar."""
    name = url.rpartition("/")[2]
    return unquote(name) if url.startswith(("http://", "https://")) else name


def folder_of(url: str) -> str:
    """All of a URL or path but its last part."""
    return url.rpartition("/")[0]


class Store:
    """One bucket, container or host; usable from many threads.

    retries: requests that were asked for again so far.
    """

    def __init__(self, root: str, patience_s: float = PATIENCE_S) -> None:
        """root: `scheme://bucket`. Raises UserError: obstore is not installed."""
        self.root, self.patience_s, self.retries = root, patience_s, 0
        self.scheme = root.partition("://")[0]
        self._store, self._has_answered = _opened(root), False

    def list(self, prefix: str) -> list[Object]:
        """Objects whose URL begins with `prefix`/, sorted. Raises UserError: the store cannot list, or refuses."""
        import obstore

        if self.scheme.startswith("http"):
            raise UserError(
                f"{prefix}: a web server does not say what it has; name the objects: NAME-{{000000..000009}}.tar"
            )

        def listed() -> list[Object]:
            return [
                self._object(meta)
                for page in obstore.list(self._persistent, self._path(prefix))
                for meta in page
            ]

        return sorted(self._patiently(listed, prefix))

    def stat(self, url: str) -> Object:
        """Raises NotThere."""
        import obstore

        return self._object(self._patiently(lambda: obstore.head(self._store, self._path(url)), url), url)

    def read(
        self, url: str, ranges: Sequence[tuple[int, int]], version: str | None = None
    ) -> Sequence[bytes]:
        """The bytes of some (offset, size), in this order and at the same time.

        Raises NotThere, Changed: another version than `version`.
        """
        return [each.result() for each in [self.reading(url, *part, version) for part in ranges]]

    def reading(self, url: str, offset: int, size: int, version: str | None = None) -> "Future[bytes]":
        """The same for one range, on its way."""
        return self._pool.submit(self._read, url, offset, size, version)

    def get(self, url: str) -> tuple[bytes, Object]:
        """All bytes of a small object, and its version as `put` compares it. Raises NotThere."""
        import obstore

        def whole() -> tuple[bytes, Object]:
            answer = obstore.get(self._store, self._path(url))
            meta: Any = answer.meta
            data = bytes(answer.bytes())
            if len(data) != meta["size"]:
                raise _HalfAnswer(f"{len(data):,} of {meta['size']:,} bytes")
            found = self._object(meta, url)
            return data, found._replace(version=meta[self._compared] or found.version)

        return self._patiently(whole, url)

    def stream(self, object: Object) -> Iterator[bytes]:
        """All bytes of an object in pieces, the next of which is on its way. Raises NotThere, Changed."""
        if not object.size:
            return
        starts = [*range(0, object.size, PIECE), object.size]
        parts = [(start, end - start) for start, end in pairwise(starts)]
        coming = [self.reading(object.url, *part, object.version) for part in parts[:1]]
        for following in [*parts[1:], None]:
            if following:
                coming.append(self.reading(object.url, *following, object.version))
            yield coming.pop(0).result()

    def put(self, url: str, data: bytes | Path, replaces: str | None = "") -> str:
        """Write an object, whole or not at all; its version.

        data: a file that is large goes in parts, several at once, each of which is asked for again by itself.
        replaces: the version that is there, None: nothing is; by default whatever is there. Raises Changed: it is not so.
        """
        import obstore

        condition = {self._compared: replaces}
        mode: Any = "overwrite" if replaces == "" else "create" if replaces is None else condition
        store, parts = self._store, dict[str, Any]()
        if isinstance(data, Path):
            size = max(LEAST_PART, -(-data.stat().st_size // MOST_PARTS))
            store, parts = self._persistent, {"chunk_size": size, "max_concurrency": PARTS_AT_ONCE}

        def written() -> str:
            found: Any = obstore.put(store, self._path(url), data, mode=mode, **parts)
            return str(found[self._compared] or "")

        return self._patiently(written, url)

    def delete(self, url: str) -> None:
        """An object that is not there is no error."""
        import obstore

        self._patiently(lambda: obstore.delete(self._store, self._path(url)), url)

    @property
    def _compared(self) -> str:
        """By which name the store knows the version that a conditional put compares; no listing of gs:// has it."""
        return "version" if self.scheme == "gs" else "e_tag"

    @cached_property
    def _persistent(self) -> "ObjectStore":
        """Of an upload in parts, or a listing in pages, only obstore itself can ask for one again."""
        return _opened(self.root, PART_RETRIES, self.patience_s)

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(AT_ONCE, "store")

    def _path(self, url: str) -> str:
        path = url.removeprefix(self.root).lstrip("/")
        return unquote(path) if self.scheme.startswith("http") else path

    def _object(self, meta: Any, url: str = "") -> Object:
        version = meta["e_tag"] or meta["last_modified"].isoformat()  # what a listing says too
        return Object(url or f"{self.root}/{meta['path']}", meta["size"], version)

    def _read(self, url: str, offset: int, size: int, version: str | None) -> bytes:
        import obstore

        def part() -> bytes:
            answer = obstore.get(self._store, self._path(url), options={"range": (offset, offset + size)})
            found = self._object(answer.meta, url)
            if version is not None and found.version != version:
                raise Changed(
                    f"{url}: has changed since it was indexed; it was version {version} and is {found.version}"
                )
            data = bytes(answer.bytes())
            if len(data) != size:
                raise _HalfAnswer(f"{len(data):,} of {size:,} bytes")
            return data

        return self._patiently(part, url) if size else b""

    def _patiently(self, request: Callable[[], T], url: str) -> T:
        began, pause, said = time.monotonic(), FIRST_PAUSE_S, False
        while True:
            try:
                answer = request()
                self._has_answered = True
                return answer
            except VergenceError:
                raise
            except Exception as error:
                reason = _first_line(error)
                if not self._has_answered and any(place in reason for place in _INSTANCE):
                    raise UserError(
                        f"{url}: no credentials are set, and no instance has any; {_CURES[self.scheme]}"
                    ) from None
                _raise_if_lasting(error, reason, url, self.scheme)
                waited = time.monotonic() - began
                if waited + pause > self.patience_s:
                    raise Away(
                        f"{url}: the store has not answered as it should for {waited:.0f} s ({reason}); the same command "
                        "goes on once it does"
                    ) from None
            if waited > SILENT_S and not said:
                said = True
                log.warning(
                    "%s: does not answer as it should (%s); tried for %g s", url, reason, self.patience_s
                )
            self.retries += 1
            time.sleep(pause * random.uniform(0.5, 1.5))
            pause = min(2 * pause, LONGEST_PAUSE_S)


class _HalfAnswer(Exception):
    """Fewer bytes than there are."""


def store_of(url: str, patience_s: float = PATIENCE_S) -> Store:
    """The store that holds this object, one a process. Raises UserError: no bucket or host in it."""
    try:
        parts = urlsplit(url)
    except ValueError as error:  # of brackets
        raise UserError(f"{masked(url)}: is no URL ({error})") from None
    if not parts.netloc:
        raise UserError(f"{url}: names no bucket; a URL is {parts.scheme}://BUCKET/FOLDER")
    if "@" in parts.netloc:
        raise UserError(f"{masked(url)}: a URL holds no user or password; see docs/stores.md")
    return _store(f"{parts.scheme}://{parts.netloc}", patience_s, os.getpid())


@lru_cache(maxsize=16)
def _store(root: str, patience_s: float, pid: int) -> Store:
    """pid: a store's threads do not live on in a fork."""
    return Store(root, patience_s)


def _opened(root: str, retries: int = 0, within_s: float = 0) -> "ObjectStore":
    try:
        from obstore.store import HTTPStore, from_url
    except ImportError:
        raise UserError(f"{root}: stores need one more package: {INSTALL}") from None
    options: Any = {"timeout": f"{ANSWER_S}s", "connect_timeout": f"{CONNECT_S}s", "allow_http": True}
    again: Any = {"max_retries": retries, "retry_timeout": timedelta(seconds=within_s)}
    try:
        if root.startswith("http"):  # from_url takes some hosts for S3 or Azure, and asks for credentials
            return HTTPStore.from_url(root, client_options=options, retry_config=again)
        return from_url(root, client_options=options, retry_config=again, **_own(root))
    except Exception as error:
        cure = _CURES.get(root.partition("://")[0], "is it a URL?")
        raise UserError(f"{root}: cannot be opened ({_first_line(error)}); {cure}") from None


def _own(root: str) -> dict[str, Any]:
    """What the AWS tools read and obstore does not: their files."""
    if not root.startswith("s3://") or os.environ.get("AWS_ACCESS_KEY_ID"):
        return {}
    try:
        import boto3
        from obstore.auth.boto3 import Boto3CredentialProvider
    except ImportError:
        raise UserError(f"{root}: S3 needs one more package: {INSTALL}") from None
    session = boto3.Session()
    region = session.region_name or "us-east-1"
    if (
        session.get_credentials() is None
    ):  # a public bucket, or a message of the store that says what is missing
        return {"region": region, "skip_signature": True}
    provider = Boto3CredentialProvider(session, ttl=timedelta(seconds=CREDENTIALS_S))
    return {"region": region, "credential_provider": provider}


def _raise_if_lasting(error: Exception, reason: str, url: str, scheme: str) -> None:
    """Raise what asking again would not mend."""
    from obstore import exceptions as obs

    if "NoSuchBucket" in str(error):
        raise UserError(f"{url}: there is no such bucket; make it, or mend its name")
    if isinstance(error, FileNotFoundError | obs.NotFoundError):
        raise NotThere(f"{url}: is not there")
    if isinstance(error, FileExistsError | obs.AlreadyExistsError | obs.PreconditionError):
        raise Changed(f"{url}: was written by somebody else")
    if isinstance(error, obs.InvalidPathError) or "Could not parse path" in reason:
        raise UserError(f"{url}: no object is reached by such a name ({reason}); mend or rename it")
    if "redirect without LOCATION" in reason:
        raise UserError(f"{url}: the bucket is in another region ({reason}); set AWS_REGION")
    cure = _CURES.get(scheme, "ask who keeps the server")
    status = next((int(code) for code in _STATUS.findall(reason)), 0)
    refused = isinstance(error, PermissionError | obs.PermissionDeniedError | obs.UnauthenticatedError)
    if refused or status in (401, 403):
        raise UserError(f"{url}: the store refuses ({reason}); {cure}")
    came_late = "RequestTimeout" in str(error)  # of S3, with a 400
    passes = came_late or status in (408, 409, 425, 429)
    if isinstance(error, obs.NotSupportedError) or (400 <= status < 500 and not passes):
        raise UserError(f"{url}: the store cannot do this ({reason})")
    if not isinstance(error, obs.BaseError | OSError | _HalfAnswer):
        raise error


def _first_line(error: Exception) -> str:
    """Without the library's own notes for its authors, and the body of an answer."""
    return str(error).partition("\n")[0].partition(": <?xml")[0].strip()[:300]
