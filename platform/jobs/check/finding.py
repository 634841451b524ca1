"""What a rule says about a manifest, and the manifest it is about."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple


@dataclass(frozen=True)
class Document:
    """One object of a bundle; keys whose value is null are gone, as on the server."""

    file: str  # as the user named it
    value: dict[str, Any]

    @property
    def kind(self) -> str:
        return str(self.value.get("kind"))

    @property
    def group(self) -> str:
        """Of its apiVersion; empty for the core group."""
        return str(self.value.get("apiVersion")).rpartition("/")[0]

    @property
    def name(self) -> str:
        return str(dig(self.value, "metadata.name"))

    @property
    def namespace(self) -> str | None:
        found = dig(self.value, "metadata.namespace")
        return None if found is None else str(found)


class Finding(NamedTuple):
    """path: from the top of the object, `spec.containers[0].image`; rule: its name in docs/kubernetes.md."""

    path: str
    rule: str
    message: str
    cure: str


Findings = Iterator[Finding]
Rule = Callable[[Document], Findings]


class Fault(NamedTuple):
    document: Document
    finding: Finding

    def __str__(self) -> str:
        path, rule, message, cure = self.finding
        return f"{self.document.file}: {self.document.kind}/{self.document.name}: {path}: {rule}: {message}; {cure}"


def dig(value: Any, path: str) -> Any:
    """The value at a dotted path of keys; None where the path ends early."""
    for key in path.split("."):
        if not isinstance(value, dict):
            return None
        value = value.get(key)
    return value


def table(value: Any) -> dict[str, Any]:
    """A mapping as it is, anything else as an empty one: its own rule says that it is none."""
    return value if isinstance(value, dict) else {}


def rows(value: Any) -> list[dict[str, Any]]:
    """The mappings of a list; nothing for anything else."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def number(value: Any) -> int | None:
    """An integer; None for all else, true and false among it."""
    return value if isinstance(value, int) and not isinstance(value, bool) else None
