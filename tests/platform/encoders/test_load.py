"""Encoders found by run, file and folder, and what is said of one that is not there or is none."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_encoder import make_card, make_encoder
from torch import nn

from vergence.platform.encoders.export import export_encoder
from vergence.platform.encoders.load import load_encoder
from vergence.platform.errors import UserError
from vergence.platform.schema import SCHEMA


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_encoder(make_encoder(), make_card(), tmp_path_factory.mktemp("run") / "exports")


def test_loaded_by_file_and_by_folder(exported: Path) -> None:
    folder = exported
    images = np.random.default_rng(2).integers(0, 256, (300, 16, 16, 3), dtype=np.uint8)
    loaded = [load_encoder(str(ref)) for ref in (folder / "encoder.pt2", folder, folder.parent)]
    assert {encoder.digest for encoder in loaded} == {loaded[0].digest}
    assert (loaded[0].size, loaded[0].dim, loaded[0].card) == (16, 128, make_card())
    whole = loaded[0](images)
    assert whole.dtype == np.float32
    np.testing.assert_allclose(whole[290:], loaded[1](images[290:]), atol=1e-5)  # across batches
    assert loaded[0](images[:0]).shape == (0, 128)


def test_a_file_that_is_no_encoder_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.pt2").write_bytes(b"not a zip")
    with pytest.raises(UserError, match=r"x\.pt2: not an exported encoder"):
        load_encoder(str(tmp_path / "x.pt2"))

    floats = torch.export.export(nn.Linear(3, 3), (torch.zeros(2, 3),))
    torch.export.save(floats, tmp_path / "floats.pt2")
    with pytest.raises(UserError, match=r"floats\.pt2: not an exported encoder"):
        load_encoder(str(tmp_path / "floats.pt2"))


def test_unknown_runs_and_files_name_what_exists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VERGENCE_HOME", str(tmp_path))
    with pytest.raises(UserError, match="no finished run yet"):
        load_encoder("simclr")
    (tmp_path / "simclr-digits" / "exports").mkdir(parents=True)
    (tmp_path / "young").mkdir()
    with pytest.raises(UserError, match=r"did you mean simclr-digits\? valid: simclr-digits"):
        load_encoder("simclr-digit")
    with pytest.raises(UserError, match="run young has no exported encoder yet"):
        load_encoder("young")
    with pytest.raises(UserError, match="no such encoder"):
        load_encoder("nowhere/encoder.pt2")


def test_a_damaged_card_is_named_and_a_missing_one_is_none(tmp_path: Path) -> None:
    folder = export_encoder(make_encoder(), make_card(), tmp_path / "exports")
    (folder / "encoder.json").write_text('{"name": "x"}')
    with pytest.raises(UserError, match=r"encoder\.json: not the card of an encoder"):
        load_encoder(str(folder))
    (folder / "encoder.json").unlink()
    assert load_encoder(str(folder)).card is None


def test_a_card_of_an_older_schema_is_read_and_one_of_a_newer_version_is_refused_as_such(
    tmp_path: Path,
) -> None:
    folder = export_encoder(make_encoder(), make_card(recipe={"seed": 1}), tmp_path / "exports")
    fields = json.loads((folder / "encoder.json").read_text())
    assert fields["schema"] == SCHEMA
    older = {name: value for name, value in fields.items() if name != "schema"}
    (folder / "encoder.json").write_text(json.dumps(older))
    card = load_encoder(str(folder)).card
    assert card.schema_version == card.recipe["schema"] == 1  # so that --baselines refuses it by name
    (folder / "encoder.json").write_text(json.dumps(fields | {"schema": SCHEMA + 1, "licence": "MIT"}))
    with pytest.raises(
        UserError, match=rf"a newer version of Vergence \(schema {SCHEMA + 1}, this one has {SCHEMA}\)"
    ):
        load_encoder(str(folder))
