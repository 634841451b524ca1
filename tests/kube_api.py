"""A double of Kubernetes' API server, over real HTTP: the official client and kubectl both talk to it.

It has what `vergence submit --to k8s` asks for: RayJobs (create, get, list, watch, patch, delete), pods and their logs,
events, Kueue's workloads, and discovery. There is no operator: a test says what one would.
"""

import copy
import json
import socket
import threading
import time
import urllib.parse
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

RESOURCES = {
    "/api/v1": {"pods": ("Pod", "po"), "events": ("Event", "ev"), "configmaps": ("ConfigMap", "cm")},
    "/apis/ray.io/v1": {"rayjobs": ("RayJob", "rj")},
    "/apis/kueue.x-k8s.io/v1beta2": {"workloads": ("Workload", "wl")},
}
VERBS = ["create", "delete", "get", "list", "patch", "watch"]
Object = dict[str, Any]


class Refusal(Exception):
    def __init__(self, code: int, reason: str, message: str) -> None:
        self.code = code
        self.body = {
            "kind": "Status",
            "apiVersion": "v1",
            "status": "Failure",
            "code": code,
            "reason": reason,
        }
        self.body["message"] = message


class KubeApi:
    """State of the double, and what tests do to it; all under one lock."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.version = 100
        self.objects: dict[tuple[str, str], Object] = {}  # (resource, name)
        self.logs: dict[str, list[str]] = {}  # pod -> lines with moments
        self.past: list[tuple[int, str, Object]] = []  # of RayJobs, for watches
        self.requests: list[str] = []
        self.refused: dict[str, Refusal] = {}  # "POST rayjobs" -> what it gets
        self.without: set[str] = set()  # resources whose kind is not installed
        self.expired = 0  # so many watches are told 410
        self.lingers = False  # whether a deleted RayJob waits for its finalizer
        self.server: _Server | None = None
        self.port = 0

    # --- the server

    def start(self) -> None:
        api = self

        class Handler(_Handler):
            kube = api

        self.server = _Server(("127.0.0.1", self.port), Handler)
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        """Gone: nothing listens, and open connections end."""
        server, self.server = self.server, None
        assert server is not None
        server.shutdown()
        server.server_close()
        for connection in server.connections:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def kubeconfig(self, path: Path) -> Path:
        cluster = {"name": "double", "cluster": {"server": self.url}}
        user = {"name": "me", "user": {"token": "t"}}
        context = {"name": "double", "context": {"cluster": "double", "user": "me", "namespace": "team"}}
        kinds = {"apiVersion": "v1", "kind": "Config", "current-context": "double"}
        path.write_text(json.dumps({**kinds, "clusters": [cluster], "users": [user], "contexts": [context]}))
        return path

    # --- what an operator, a kubelet and Kueue would do

    def put(self, resource: str, value: Object, kind: str = "MODIFIED") -> Object:
        with self.changed:
            self.version += 1
            value["metadata"]["resourceVersion"] = str(self.version)
            self.objects[resource, value["metadata"]["name"]] = value
            if resource == "rayjobs":
                self.past.append((self.version, kind, copy.deepcopy(value)))
            self.changed.notify_all()
            return value

    def add(self, resource: str, name: str, **fields: Any) -> Object:
        born = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        metadata = {"name": name, "namespace": "team", "uid": str(uuid.uuid4()), "creationTimestamp": born}
        metadata |= fields.pop("metadata", {})
        return self.put(resource, {"metadata": metadata, **fields}, "ADDED")

    def say(self, name: str, **status: Any) -> None:
        """Set the status of a RayJob."""
        value = self.objects["rayjobs", name]
        value["status"] = {**value.get("status", {}), **status}
        self.put("rayjobs", value)

    def run_submitter(self, name: str, pod: str = "submit-1") -> None:
        self.logs.setdefault(pod, [])
        labels = {"ray.io/originated-from-cr-name": name, "vergence/name": name}
        spec = {"containers": [{"name": "ray-job-submitter"}]}
        self.add("pods", pod, metadata={"labels": labels}, spec=spec, status={"phase": "Running"})

    def end_pod(self, pod: str, phase: str = "Succeeded") -> None:
        self.objects["pods", pod]["status"]["phase"] = phase
        self.put("pods", self.objects["pods", pod])

    def print(self, line: str, pod: str = "submit-1") -> None:
        with self.changed:
            moment = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f000Z")
            self.logs[pod].append(f"{moment} {line}")
            self.changed.notify_all()
        time.sleep(0.001)

    def remove(self, resource: str, name: str) -> None:
        with self.changed:
            self.version += 1
            value = self.objects.pop((resource, name))
            if resource == "rayjobs":
                self.past.append((self.version, "DELETED", value))
            self.changed.notify_all()

    def wait_for(self, holds: Callable[[], bool], most_s: float = 10.0) -> None:
        """Until something is so, as other threads make it."""
        until = time.monotonic() + most_s
        while not holds():
            assert time.monotonic() < until, "it never was"
            time.sleep(0.005)


@contextmanager
def kube_api() -> Iterator[KubeApi]:
    api = KubeApi()
    api.start()
    try:
        yield api
    finally:
        if api.server is not None:
            api.stop()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.connections: list[socket.socket] = []

    def get_request(self) -> Any:
        connection, address = super().get_request()
        self.connections.append(connection)
        return connection, address


class _Handler(BaseHTTPRequestHandler):
    kube: KubeApi
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _handle(self) -> None:
        url = urllib.parse.urlsplit(self.path)
        query = {key: values[-1] for key, values in urllib.parse.parse_qs(url.query).items()}
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length) or "{}") if length else {}
        try:
            self._route(url.path, query, body)
        except Refusal as refusal:
            self._json(refusal.body, refusal.code)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    do_GET = do_POST = do_DELETE = do_PATCH = _handle

    def _route(self, path: str, query: dict[str, str], body: Object) -> None:
        kube = self.kube
        if path in ("/api", "/apis", "/version") or path in RESOURCES:
            self._json(_discovery(path, kube.without))
            return
        for prefix, kinds in RESOURCES.items():
            if not path.startswith(f"{prefix}/namespaces/team/"):
                continue
            resource, _, rest = path.removeprefix(f"{prefix}/namespaces/team/").partition("/")
            name, _, sub = rest.partition("/")
            if resource not in kinds or resource in kube.without:
                break
            kube.requests.append(f"{self.command} {resource}{'/' + sub if sub else ''}")
            if refusal := kube.refused.get(f"{self.command} {resource}{'/' + sub if sub else ''}"):
                raise refusal
            if sub == "log":
                self._log(name, query)
            elif query.get("watch") in ("true", "True", "1"):
                self._watch(resource, query)
            else:
                version, kind = prefix.removeprefix("/apis/").removeprefix("/api/"), kinds[resource][0]
                self._json(*self._answer(resource, name, query, body, version, kind))
            return
        text = b"404 page not found\n"  # as the server says it of kinds that it has never heard of
        self.send_response(404)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def _answer(
        self, resource: str, name: str, query: dict[str, str], body: Object, version: str, kind: str
    ) -> tuple[Object, int]:
        kube, key = self.kube, (resource, name or (body.get("metadata") or {}).get("name", ""))
        said = {"apiVersion": version, "kind": kind}
        with kube.changed:
            found = kube.objects.get(key)
            if self.command == "POST":
                if found:
                    raise Refusal(409, "AlreadyExists", f'{resource} "{key[1]}" already exists')
                metadata = body["metadata"]
                added = {key: value for key, value in body.items() if key not in said}
                return {**said, **kube.add(resource, metadata["name"], **copy.deepcopy(added))}, 201
            if not name:
                items = [
                    {**said, **each}
                    for (of, _), each in kube.objects.items()
                    if of == resource and _selected(each, query.get("labelSelector", ""))
                ]
                listed = {"kind": f"{kind}List", "metadata": {"resourceVersion": str(kube.version)}}
                return {**listed, "apiVersion": version, "items": items}, 200
            if found is None:
                raise Refusal(404, "NotFound", f'{resource} "{name}" not found')
            if self.command == "PATCH":
                return {**said, **kube.put(resource, _merged(found, body))}, 200
            if self.command == "DELETE":
                wanted = (body.get("preconditions") or {}).get("uid")
                if wanted not in (None, found["metadata"]["uid"]):
                    raise Refusal(409, "Conflict", "the UID in the precondition does not match")
                if kube.lingers:
                    found["metadata"]["deletionTimestamp"] = "2026-11-26T00:00:00Z"
                    kube.put(resource, found)
                else:
                    kube.remove(resource, name)
            return {**said, **found}, 200

    def _watch(self, resource: str, query: dict[str, str]) -> None:
        kube = self.kube
        name = query.get("fieldSelector", "").removeprefix("metadata.name=")
        until = time.monotonic() + float(query.get("timeoutSeconds", 30))
        after = int(query.get("resourceVersion", 0))
        self._begin("application/json")
        if kube.expired:
            kube.expired -= 1
            gone = {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old resource version"}
            self._chunk(json.dumps({"type": "ERROR", "object": gone}) + "\n")
            self._chunk("")
            return
        server = kube.server
        while time.monotonic() < until and kube.server is server:
            with kube.changed:
                news = [each for each in kube.past if each[0] > after and each[2]["metadata"]["name"] == name]
                if not news:
                    kube.changed.wait(0.1)
            for version, kind, value in news:
                after = version
                self._chunk(json.dumps({"type": kind, "object": value}) + "\n")
        if kube.server is server:
            self._chunk("")
        self.close_connection = True

    def _log(self, pod: str, query: dict[str, str]) -> None:
        kube, sent, server = self.kube, 0, self.kube.server
        if pod not in kube.logs:
            raise Refusal(404, "NotFound", f'pods "{pod}" not found')
        self._begin("text/plain")
        follow = query.get("follow") in ("true", "True")
        while kube.server is server:
            with kube.changed:
                new, phase = kube.logs[pod][sent:], kube.objects["pods", pod]["status"]["phase"]
                if not new and follow and phase == "Running":
                    kube.changed.wait(0.1)
            for line in new:
                sent += 1
                self._chunk(line + "\n" if query.get("timestamps") else line.partition(" ")[2] + "\n")
            if not new and not (follow and phase == "Running"):
                self._chunk("")
                break
        self.close_connection = True

    def _begin(self, kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def _chunk(self, text: str) -> None:
        data = text.encode()
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self.wfile.flush()

    def _json(self, value: Object, code: int = 200) -> None:
        data = json.dumps(value).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def _selected(value: Object, selector: str) -> bool:
    labels = value["metadata"].get("labels") or {}
    for term in filter(None, selector.split(",")):
        key, unequal, wanted = term.partition("!=")
        if unequal:
            if labels.get(key) == wanted:
                return False
            continue
        key, equal, wanted = term.partition("=")
        if key not in labels or (equal and labels[key] != wanted):
            return False
    return True


def _merged(old: Any, new: Any) -> Any:
    """JSON merge patch."""
    if not isinstance(new, dict) or not isinstance(old, dict):
        return new
    keys = {**old, **new}
    return {
        key: _merged(old.get(key), new[key]) if key in new else old[key]
        for key in keys
        if new.get(key, 0) is not None
    }


def _discovery(path: str, without: set[str]) -> Object:
    if path == "/version":
        return {"major": "1", "minor": "32", "gitVersion": "v1.32.4"}
    if path == "/api":
        return {"kind": "APIVersions", "versions": ["v1"]}
    if path == "/apis":
        groups = []
        for prefix in RESOURCES:
            if prefix.startswith("/apis/"):
                group, version = prefix.removeprefix("/apis/").split("/")
                served = {"groupVersion": f"{group}/{version}", "version": version}
                groups.append({"name": group, "versions": [served], "preferredVersion": served})
        return {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}
    return {
        "kind": "APIResourceList",
        "groupVersion": path.removeprefix("/apis/").removeprefix("/api/"),
        "resources": [
            {
                "name": name,
                "singularName": kind.lower(),
                "namespaced": True,
                "kind": kind,
                "verbs": VERBS,
                "shortNames": [short],
            }
            for name, (kind, short) in RESOURCES[path].items()
            if name not in without
        ],
    }
