"""A report: read back as it was written, refused if it is of another form."""

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from vergence.platform.errors import UserError
from vergence.platform.evaluate.report import Data, EncoderFacts, Figure, Report, SetFacts, read_report

SET = {"digest": "d1", "images": 9, "unreadable": 1, "unlabelled": 0}
REPORT = Report(
    encoder=EncoderFacts(name="run", digest="e1", dim=128, size=32),
    data=Data(
        bank=SetFacts(shards="train/", notes=("a line",), **SET),
        test=SetFacts(shards="test/", **SET),
        input="32 x 32",
        classes="compared by name",
        names=("ant", "bee"),
    ),
    protocols={"knn-v1": {"k": 20}, "linear-v1": {"C": (0.1, 1.0)}},
    results={
        "encoder": {
            "knn-v1": Figure(top1=0.5, settings={"k": 9}),
            "linear-v1": Figure(top1=0.75, settings={"C": 0.1}),
        },
        "as initialised": {"knn-v1": Figure(top1=0.25, min=0.2, max=0.3, seeds=(0.2, 0.3))},
    },
    baselines={"as initialised": "a seed each"},
)


def test_a_report_reads_back_and_its_keys_are_what_scripts_read(tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text(json.dumps(REPORT.dump()))
    back = read_report(tmp_path / "r.json")
    assert back.dump() == REPORT.dump()
    assert back.results["as initialised"]["knn-v1"].seeds == (0.2, 0.3)
    plain = json.loads((tmp_path / "r.json").read_text())
    assert plain["schema"] == 1
    assert list(plain) == ["schema", "encoder", "data", "protocols", "results", "baselines"]
    assert plain["results"]["encoder"]["knn-v1"] == {"top1": 0.5, "settings": {"k": 9}}
    assert plain["encoder"] == {"name": "run", "digest": "e1", "dim": 128, "size": 32}
    assert back.scores == {"knn-v1": 0.5, "linear-v1": 0.75}


def test_a_report_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        REPORT.encoder.name = "another"  # type: ignore[misc]


def test_what_is_no_report_of_this_form_is_refused_by_name(tmp_path: Path) -> None:
    file = tmp_path / "r.json"
    for text, message in (
        (json.dumps({"protocol": {"name": "knn-v1"}, "results": {}}), "r.json: a report without a schema"),
        (json.dumps(REPORT.dump() | {"schema": 2}), "r.json: a report of schema 2, this version reads 1"),
        (json.dumps(REPORT.dump() | {"figures": 1}), "r.json: not a report: figures"),
        ("{", "r.json: not a report"),
        ("[]", "r.json: not a report"),
    ):
        file.write_text(text)
        with pytest.raises(UserError, match=message) as caught:
            read_report(file)
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"none\.json: no such report"):
        read_report(tmp_path / "none.json")
