"""What an evaluation found, typed: who was measured, on which data, by which protocols, and the figures."""

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vergence.platform.errors import UserError

SCHEMA: Literal[1] = 1


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class EncoderFacts(_Frozen):
    """Which encoder; equal digests are the same weights and input size."""

    name: str
    digest: str
    dim: int
    size: int  # input side, pixels


class SetFacts(_Frozen):
    """One set of labelled shards, and what of it took part."""

    shards: str  # as they were named
    digest: str
    images: int  # that were embedded
    unreadable: int  # with a class, left out
    unlabelled: int  # samples without a class, left out
    notes: tuple[str, ...] = ()


class Data(_Frozen):
    """bank: what is known, None where names alone were; test: what is asked."""

    bank: SetFacts | None = None
    test: SetFacts
    input: str  # how a picture becomes the encoder's input
    classes: str  # how the classes of the two sets were compared
    names: tuple[str, ...] | None = None  # of the classes, by label
    apart: str | None = None  # a line about classes that only the bank has


class Figure(_Frozen):
    """top1: share of the test images that got their class; of several initialisations the mean.

    interval: ends of its 95 % interval over test images.  chance: top-1 of a guess, of protocols without a bank.
    settings: what the protocol chose or cut, as k or C.  min, max, seeds: of several initialisations, each of them.
    """

    top1: float
    interval: tuple[float, float] | None = None
    chance: float | None = None
    settings: dict[str, int | float] = {}
    min: float | None = None
    max: float | None = None
    seeds: tuple[float, ...] | None = None


class Report(_Frozen):
    """Figures of one encoder: `report.scores["knn-v1"]`, or `report.results[WHO][VERSION]` with the baselines."""

    schema_: Literal[1] = Field(SCHEMA, alias="schema")
    encoder: EncoderFacts
    data: Data
    protocols: dict[str, dict[str, Any]]  # version -> its fixed numbers and words
    results: dict[str, dict[str, Figure]]  # "encoder" or a baseline -> version -> figure
    baselines: dict[str, str] = {}  # what each baseline is, in words

    @property
    def scores(self) -> dict[str, float]:
        """Version of each protocol -> top-1 of the encoder."""
        return {version: figure.top1 for version, figure in self.results["encoder"].items()}

    def dump(self) -> dict[str, Any]:
        """As plain values for JSON, without what is None."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


def read_report(path: Path) -> Report:
    """The report that `vergence evaluate --json` wrote for one encoder; UserError: there is none of this form."""
    try:
        raw = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{path}: no such report; `vergence evaluate --json` writes one") from None
    except ValueError:
        raw = None
    if not isinstance(raw, dict):
        raise UserError(f"{path}: not a report of `vergence evaluate --json`")
    if raw.get("schema") != SCHEMA:
        found = f"of schema {raw['schema']}" if "schema" in raw else "without a schema, of an earlier version"
        raise UserError(f"{path}: a report {found}, this version reads {SCHEMA}; evaluate again")
    try:
        return Report.model_validate_json(json.dumps(raw))
    except ValidationError as error:
        wrong = ".".join(map(str, error.errors()[0]["loc"]))
        raise UserError(f"{path}: not a report: {wrong}") from None
