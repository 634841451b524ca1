"""The API server, through Kubernetes' official client; what it refuses is told in words."""

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

from vergence.platform.errors import UserError, VergenceError

GROUP, VERSION, PLURAL = "ray.io", "v1", "rayjobs"
KUEUE, KUEUE_VERSION = "kueue.x-k8s.io", "v1beta2"
WATCH_S = 30  # a watch ends, and the object is read anew
TIMEOUT_S = (5.0, 35.0)  # of a request: to connect, between two pieces of an answer
GONE = 410
PIP = "pip install 'vergence[k8s]'"


class Lost(VergenceError):
    """The server does not answer now."""


class Missing(UserError):
    """There is no such object."""


class Taken(Exception):
    """An object of this name is there already."""


class Api:
    """RayJobs, pods and events of one namespace."""

    def __init__(self, namespace: str, context: str | None = None) -> None:
        """Raises UserError: the client is not installed, or there is no configuration of a cluster."""
        self.namespace = namespace
        try:
            import kubernetes
        except ImportError:
            raise UserError(f"--to k8s needs an extra: {PIP}") from None
        self._client, self.where = _configured(kubernetes, context)
        self._custom = kubernetes.client.CustomObjectsApi(self._client)
        self._core = kubernetes.client.CoreV1Api(self._client)

    def create(self, rayjob: dict[str, Any]) -> dict[str, Any]:
        """Raises Taken."""
        created: dict[str, Any] = self._asked(
            lambda: self._custom.create_namespaced_custom_object(
                *self._place,
                rayjob,
                field_manager="vergence",
                field_validation="Strict",
                _request_timeout=TIMEOUT_S,
            ),
            "create",
        )
        return created

    def get(self, name: str) -> dict[str, Any]:
        """Raises Missing."""
        found: dict[str, Any] = self._asked(
            lambda: self._custom.get_namespaced_custom_object(*self._place, name, _request_timeout=TIMEOUT_S),
            "get",
            name,
        )
        return found

    def rayjobs(self, label: str) -> list[dict[str, Any]]:
        """RayJobs with a label."""
        found: list[dict[str, Any]] = self._asked(
            lambda: self._custom.list_namespaced_custom_object(
                *self._place, label_selector=label, _request_timeout=TIMEOUT_S
            ),
            "list",
        )["items"]
        return found

    def delete(self, name: str, uid: str) -> None:
        """Delete this very RayJob; its cluster goes with it. One that is gone already is no error."""
        import kubernetes

        options = kubernetes.client.V1DeleteOptions(
            propagation_policy="Background", preconditions=kubernetes.client.V1Preconditions(uid=uid)
        )
        try:
            self._asked(
                lambda: self._custom.delete_namespaced_custom_object(
                    *self._place, name, body=options, _request_timeout=TIMEOUT_S
                ),
                "delete",
                name,
            )
        except (Missing, Taken):  # gone, or another one by now
            return

    def wait(self, rayjob: dict[str, Any]) -> None:
        """Until something happens to a RayJob, at most `WATCH_S`.

        Returns at once when the server no longer knows that far back (410): read the object anew, and wait from there.
        """
        import kubernetes

        metadata = rayjob["metadata"]
        stream = kubernetes.watch.Watch().stream(
            self._custom.list_namespaced_custom_object,
            *self._place,
            field_selector=f"metadata.name={metadata['name']}",
            resource_version=metadata["resourceVersion"],
            timeout_seconds=WATCH_S,
            _request_timeout=TIMEOUT_S,
        )
        try:
            self._asked(lambda: next(stream, None), "watch")
        except _Expired:
            return
        finally:
            stream.close()

    def pods(self, label: str) -> list[dict[str, Any]]:
        """Pods with a label, oldest first."""
        items = self._plain(
            self._asked(
                lambda: self._core.list_namespaced_pod(
                    self.namespace, label_selector=label, _request_timeout=TIMEOUT_S
                ),
                "list pods",
            )
        )["items"]
        return sorted(items, key=lambda pod: str(pod["metadata"].get("creationTimestamp")))

    def log(self, pod: str, *, follow: bool, since_s: int | None) -> Iterator[str]:
        """Lines of a pod's only container, each with its moment before it; a longer silence than a request's ends it."""
        import urllib3

        since: dict[str, Any] = {} if since_s is None else {"since_seconds": since_s}
        response = self._asked(
            lambda: self._core.read_namespaced_pod_log(
                pod,
                self.namespace,
                follow=follow,
                timestamps=True,
                **since,
                _preload_content=False,
                _request_timeout=TIMEOUT_S,
            ),
            "read the log of",
            pod,
        )
        left = b""
        try:
            for chunk in response.stream(amt=None):
                *lines, left = (left + chunk).split(b"\n")
                yield from (line.decode(errors="replace") for line in lines)
        except urllib3.exceptions.HTTPError:
            return  # silence, or a lost connection: whoever follows looks how the job stands, and comes again
        finally:
            response.release_conn()
        if left:
            yield left.decode(errors="replace")

    def events(self) -> list[dict[str, Any]]:
        """Of the namespace; none where we may not see them."""
        try:
            answer = self._asked(
                lambda: self._core.list_namespaced_event(self.namespace, _request_timeout=TIMEOUT_S),
                "list events",
            )
        except UserError:
            return []
        items: list[dict[str, Any]] = self._plain(answer)["items"]
        return items

    def workloads(self) -> list[dict[str, Any]]:
        """Kueue's, of the namespace; none where there is no Kueue or we may not see them."""
        try:
            answer = self._asked(
                lambda: self._custom.list_namespaced_custom_object(
                    KUEUE, KUEUE_VERSION, self.namespace, "workloads", _request_timeout=TIMEOUT_S
                ),
                "list workloads",
            )
        except UserError:
            return []
        items: list[dict[str, Any]] = answer["items"]
        return items

    @property
    def _place(self) -> tuple[str, str, str, str]:
        return GROUP, VERSION, self.namespace, PLURAL

    def _plain(self, answer: Any) -> Any:
        return self._client.sanitize_for_serialization(answer)

    def _asked(self, request: Callable[[], Any], verb: str, name: str = "") -> Any:
        import urllib3
        from kubernetes.client import ApiException

        try:
            return request()
        except ApiException as error:
            raise self._in_words(error, verb, name) from None
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise Lost(f"{self.where} does not answer ({_innermost(error)})") from None

    def _in_words(self, error: Any, verb: str, name: str) -> Exception:
        """What the server has refused, and what to do."""
        said = _said(error)
        message = said.get("message") or error.reason
        place = f"{self.where}: namespace {self.namespace}"
        match error.status:
            case 401:
                return UserError(
                    f"{self.where}: the server does not know us: log in again, or choose another context"
                )
            case 403:
                return UserError(
                    f"{place}: not allowed: {message}; ask for the Role of k8s/base/submitter.yaml"
                )
            case 404 if verb in ("create", "list", "watch") and not self._knows_rayjobs():
                return UserError(
                    f"{self.where}: has no kind RayJob of {GROUP}/{VERSION}: install KubeRay (see k8s/README.md)"
                )
            case 404 if name:
                return Missing(f"{place}: has no {name!r}")
            case 404:
                return UserError(f"{place}: not found: {message}; does the namespace exist?")
            case 409:
                return Taken(message)
            case 410:
                return _Expired()
            case 422 | 400:
                return UserError(f"{place}: refused: {message}")
            case 429 | 500 | 502 | 503 | 504:
                return Lost(f"{self.where} does not answer ({error.status}: {message})")
        return VergenceError(f"{place}: {error.status}: {message}")

    def _knows_rayjobs(self) -> bool:
        """A namespace that is not there lists as empty, a kind that is not there does not list."""
        from kubernetes.client import ApiException

        try:
            self._custom.list_namespaced_custom_object(*self._place, limit=1, _request_timeout=TIMEOUT_S)
        except ApiException as error:
            return error.status != 404
        return True


class _Expired(Exception):
    """The server no longer knows the version to watch from."""


def _configured(kubernetes: Any, context: str | None) -> tuple[Any, str]:
    """A client and the name of where it leads: by context, in-cluster, or the kubeconfig's current context."""
    configuration = kubernetes.client.Configuration()
    config, error = kubernetes.config, kubernetes.config.ConfigException
    try:
        if context is None:
            try:
                config.load_incluster_config(client_configuration=configuration)
                return kubernetes.client.ApiClient(configuration), "this cluster"
            except error:
                pass
        config.load_kube_config(context=context, client_configuration=configuration)
    except error as reason:
        raise UserError(
            f"no Kubernetes cluster is configured ({reason}); set KUBECONFIG, or context in the profile"
        ) from None
    return kubernetes.client.ApiClient(
        configuration
    ), f"{context or 'current context'} ({configuration.host})"


def _said(error: Any) -> dict[str, Any]:
    """The body of a refusal; an unknown path answers in plain text."""
    try:
        body = json.loads(error.body or "{}")
    except ValueError:
        return {}
    return body if isinstance(body, dict) else {}


def _innermost(error: BaseException) -> str:
    reason = getattr(error, "reason", None)
    if isinstance(reason, BaseException):
        return _innermost(reason)
    return str(error).rpartition(": ")[2] or type(error).__name__


def patient(
    request: Callable[[], Any], patience_s: float, says: Callable[[str], None], pause_s: float = 1.0
) -> Any:
    """The answer of a request, through a server that is gone for a while. Raises Lost: gone for longer."""
    begun_s, is_lost = time.monotonic(), False
    while True:
        try:
            answer = request()
        except Lost as error:
            if time.monotonic() - begun_s > patience_s:
                raise
            if not is_lost:
                says(f"{error}; trying again for {patience_s:.0f} s, the job goes on by itself")
            is_lost = True
            time.sleep(pause_s)
            continue
        if is_lost:
            says("the server answers again")
        return answer
