"""Aliases move in an order that a failing store and a kill leave whole."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from vergence.platform.encoders.versions import (
    CANDIDATE,
    CHAMPION,
    PREVIOUS,
    Aliases,
    aliases_of,
    decide,
    go_back,
    make_champion,
    registry,
)
from vergence.platform.errors import UserError, VergenceError

NAME = "model"


@pytest.fixture
def client(empty_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Of a registry in which a model has three versions: of entries alone, without files."""
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    monkeypatch.setenv("VERGENCE_HOME", str(tmp_path))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with registry("test") as client:
        client.create_registered_model(NAME)
        for _ in range(3):
            client.create_model_version(NAME, str(tmp_path))
        client.set_registered_model_alias(NAME, CHAMPION, "1")
        client.set_registered_model_alias(NAME, CANDIDATE, "2")
        yield client


def aliases(client: Any) -> Aliases:
    return aliases_of(client, NAME, "test")


def test_the_candidate_becomes_champion_and_the_champion_previous(client: Any) -> None:
    make_champion(client, NAME, aliases(client))
    assert aliases(client) == Aliases(candidate=None, champion=2, previous=1)
    client.set_registered_model_alias(NAME, CANDIDATE, "3")
    make_champion(client, NAME, aliases(client))
    assert aliases(client) == Aliases(candidate=None, champion=3, previous=2)
    go_back(client, NAME, aliases(client))
    assert aliases(client) == Aliases(candidate=None, champion=2, previous=2)


def test_a_model_without_a_champion_gets_one(client: Any) -> None:
    client.delete_registered_model_alias(NAME, CHAMPION)
    make_champion(client, NAME, aliases(client))
    assert aliases(client) == Aliases(candidate=None, champion=2, previous=None)


class Failing:
    """A client whose store fails when one alias is set."""

    def __init__(self, client: Any, alias: str) -> None:
        self._client, self._alias = client, alias

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def set_registered_model_alias(self, name: str, alias: str, version: str) -> None:
        if alias == self._alias:
            raise ConnectionError("the store is gone")
        self._client.set_registered_model_alias(name, alias, version)


@pytest.mark.parametrize("previous", [None, 3])
@pytest.mark.parametrize("alias", [PREVIOUS, CHAMPION])
def test_a_store_that_fails_leaves_the_aliases_as_they_were(
    client: Any, alias: str, previous: int | None
) -> None:
    if previous is not None:
        client.set_registered_model_alias(NAME, PREVIOUS, str(previous))
    before = aliases(client)
    with pytest.raises(ConnectionError):
        make_champion(Failing(client, alias), NAME, before)
    assert aliases(client) == before == Aliases(2, 1, previous)


def test_decisions_are_kept_one_beside_the_other(client: Any) -> None:
    decide(client, NAME, 2, "declined", "not better")
    decide(client, NAME, 2, "promoted", "http://user:s3cret@host/x.tar\nsays so")
    tags = client.get_model_version(NAME, "2").tags
    assert tags["decision"] == "promoted"
    kept = [value for key, value in tags.items() if key.startswith("decision.")]
    assert sorted(kept) == ["declined: not better", "promoted: http://***@host/x.tar\\nsays so"]
    assert "s3cret" not in str(tags)


def test_a_model_that_is_not_there_names_the_nearest(client: Any) -> None:
    with pytest.raises(UserError, match=r"^promote modle: no such model .*did you mean model\?"):
        aliases_of(client, "modle", "promote modle")


def test_what_the_store_says_is_one_line(client: Any) -> None:
    with (
        pytest.raises(VergenceError, match=r"^promote x: MLflow at .* refuses: .*9.*") as caught,
        registry("promote x"),
    ):
        client.get_model_version(NAME, "9")
    assert "\n" not in str(caught.value)


def test_no_registry_yet_makes_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VERGENCE_HOME", str(tmp_path / "empty"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(UserError, match="there is no registry at"), registry("promote x"):
        pass
    assert not (tmp_path / "empty").exists()
