"""Registration, loading by alias, and the stranger who has only MLflow, torch and numpy."""

import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pyarrow.parquet as pq
import pytest
from shard_files import png, write_shard
from tiny_encoder import make_card, make_encoder

from vergence.pipelines.embed import embed
from vergence.platform.data.index import Index, open_index
from vergence.platform.encoders import registry
from vergence.platform.encoders.export import export_encoder, markdown
from vergence.platform.encoders.lineage import ShardsSource
from vergence.platform.encoders.load import load_encoder
from vergence.platform.errors import UserError, VergenceError
from vergence.platform.mlflow_store import artifacts_of, store, tracking_uri

NAME = "tiny-encoder"
EXPERIMENT = "team/x (1), &=;*"
ODD = "a b ü'+"  # of a state folder
Registered = tuple[Path, Path, list[str]]


@pytest.fixture(scope="module")
def registered(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registered]:
    """(state folder, export, MLflow runs): two versions of NAME, each of its run, in a SQLite registry."""
    home = tmp_path_factory.mktemp("home") / ODD
    home.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VERGENCE_HOME", str(home))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.chdir(tmp_path_factory.mktemp("elsewhere"))
        folder = export_encoder(make_encoder(), make_card(), home / "run" / "exports")
        uri = tracking_uri()
        with store(uri) as client:
            experiment = client.create_experiment(EXPERIMENT, artifact_location=artifacts_of(uri, EXPERIMENT))
            runs = [client.create_run(experiment).info.run_id for _ in range(2)]
        tags = {"method": "simclr", "dimension": 128}
        data = registry.TrainedOn(f"{home}/train-*.tar", shards(home))
        for run_id, version in zip((*runs, *runs), (1, 2, 1, 2)):  # again: after a power cut, say
            again = registry.register(folder, NAME, run_id=run_id, tags=tags, tracking_uri=uri, data=data)
            assert again == version
        assert os.listdir() == []  # MLflow likes to leave things in the current folder
        assert os.listdir(home.parent) == [ODD]
        assert "MLFLOW_TRACKING_URI" not in os.environ
        yield home, folder, runs


def shards(home: Path) -> Index:
    image = png(np.zeros((16, 16, 3), np.uint8))
    for shard in range(2):
        write_shard(home / f"train-{shard}.tar", [(f"{shard}-{i}", {"png": image}) for i in range(3)])
    return open_index(f"{home}/train-*.tar", home / "index")


def test_the_run_names_its_data_and_the_model_its_figures(registered: Registered) -> None:
    home, _, runs = registered
    index = shards(home)
    with store(tracking_uri()) as client:
        run = client.get_run(runs[0])
        [told] = run.inputs.dataset_inputs
        [made] = run.outputs.model_outputs
        metrics = client.get_logged_model(made.model_id).metrics
    assert {tag.key: tag.value for tag in told.tags} == {"mlflow.data.context": "training"}
    assert (told.dataset.name, told.dataset.digest) == (f"{home}/train-*.tar", index.digest[:36])
    source: Any = ShardsSource.from_json(told.dataset.source)
    assert (source.shards, source.samples, source.digest) == (2, 6, index.digest)
    assert source.load() == index.shards
    [metric] = metrics
    assert (metric.key, metric.value, metric.dataset_digest) == ("knn", 0.5, index.digest[:36])


def test_versions_carry_tags_and_aliases(registered: Registered) -> None:
    _, _, runs = registered
    with store(tracking_uri()) as client:
        aliases = client.get_registered_model(NAME).aliases
        assert {key: int(value) for key, value in aliases.items()} == {"candidate": 2, "champion": 1}
        first = client.get_model_version(NAME, "1")
        assert first.tags == {"method": "simclr", "dimension": "128"}
        assert [client.get_model_version(NAME, version).run_id for version in ("1", "2")] == runs
        run = client.get_run(runs[0])
        assert run.info.status == "RUNNING"  # the run is its trainer's to end
        assert len(run.outputs.model_outputs) == 1
        assert len(client.search_experiments()) == 2  # MLflow's own "Default", and that of the runs


def test_the_model_says_what_it_is_and_each_version_is_described_by_its_card(
    registered: Registered,
) -> None:
    _, folder, runs = registered
    with store(tracking_uri()) as client:
        model, version = client.get_registered_model(NAME), client.get_model_version(NAME, "2")
        assert f"`models:/{NAME}@champion` is what readers load" in model.description
        assert version.description == markdown(make_card(), NAME)
        client.update_registered_model(NAME, description="Ours, by hand.")
        registry.register(folder, NAME, run_id=runs[0], tags={}, tracking_uri=tracking_uri())
        assert client.get_registered_model(NAME).description == "Ours, by hand."


def test_the_registered_model_carries_card_and_weights(registered: Registered) -> None:
    _, folder, _ = registered
    with store(tracking_uri()):
        files = Path(mlflow.artifacts.download_artifacts(f"models:/{NAME}/1")) / "extra_files"
    assert f'"models:/{NAME}@champion"' in (files / "card.md").read_text()
    weights = (files / "encoder.safetensors").read_bytes()
    assert weights == (folder / "encoder.safetensors").read_bytes()


def test_loaded_by_alias_and_version_it_is_the_exported_encoder(
    registered: Registered,
) -> None:
    _, folder, _ = registered
    images = np.random.default_rng(0).integers(0, 256, (7, 16, 16, 3), dtype=np.uint8)
    ours = load_encoder(str(folder))
    for ref, name in (
        (f"models:/{NAME}@champion", f"models:/{NAME}/1"),
        (f"models:/{NAME}/2", f"models:/{NAME}/2"),
    ):
        encoder = load_encoder(ref)
        assert (encoder.name, encoder.digest, encoder.card) == (name, ours.digest, ours.card)
        np.testing.assert_allclose(encoder(images), ours(images), atol=1e-5)


def test_a_stranger_without_our_packages_gets_the_vectors_of_embed(
    registered: Registered, tmp_path: Path
) -> None:
    images = np.random.default_rng(0).integers(0, 256, (64, 16, 16, 3), dtype=np.uint8)
    np.save(tmp_path / "images.npy", images)
    (tmp_path / "images").mkdir()
    for i, image in enumerate(images):
        (tmp_path / "images" / f"{i:02d}.png").write_bytes(png(image))
    script = f"""
        import sys
        class Absent:
            def find_spec(self, name, path=None, target=None):
                ours = "vergence", "timm", "torchvision", "deepspeed", "ray", "webdataset"
                if name.split(".")[0] in ours:
                    raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
        sys.meta_path.insert(0, Absent())
        import mlflow, numpy as np
        images = np.load("images.npy")
        model = mlflow.pyfunc.load_model("models:/{NAME}@champion")
        for n in (1, 7, 64):
            np.save(f"{{n}}.npy", model.predict(images[:n]))
        try:
            import vergence
        except ModuleNotFoundError:
            print("a stranger")
    """
    environment = os.environ | {
        "MLFLOW_TRACKING_URI": tracking_uri(),
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    }
    command = [sys.executable, "-I", "-c", textwrap.dedent(script)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "a stranger"
    embed(load_encoder(f"models:/{NAME}@champion"), str(tmp_path / "images"), tmp_path / "ours.parquet")
    ours = np.array(pq.read_table(tmp_path / "ours.parquet")["embedding"].to_pylist(), np.float32)
    for n in (1, 7, 64):
        np.testing.assert_allclose(np.load(tmp_path / f"{n}.npy"), ours[:n], atol=1e-5)


def test_unknown_models_aliases_and_versions_name_what_exists(
    registered: Registered,
) -> None:
    with pytest.raises(UserError, match=rf"no such model .*did you mean {NAME}\?"):
        load_encoder("models:/tiny-encode@champion")
    with pytest.raises(
        UserError, match=r"has no alias champ \(did you mean champion\? valid: candidate, champion\)"
    ):
        load_encoder(f"models:/{NAME}@champ")
    with pytest.raises(UserError, match=r"has no version 9 \(valid: 1, 2\)"):
        load_encoder(f"models:/{NAME}/9")
    with pytest.raises(UserError, match="models:/NAME@ALIAS"):
        load_encoder(f"models:/{NAME}")


def test_no_registry_yet_makes_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VERGENCE_HOME", str(tmp_path))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(UserError, match="there is no registry"):
        load_encoder(f"models:/{NAME}@champion")
    assert list(tmp_path.iterdir()) == []


def test_an_absent_server_is_one_line_within_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with pytest.raises(VergenceError, match="does not answer") as caught:
        load_encoder(f"models:/{NAME}@champion")
    assert "\n" not in str(caught.value)
    assert os.environ["MLFLOW_TRACKING_URI"] == "http://127.0.0.1:9"
    assert "MLFLOW_HTTP_REQUEST_TIMEOUT" not in os.environ


@pytest.mark.parametrize("copied", [True, False])
def test_a_state_folder_that_was_moved_or_copied_finds_its_artifacts(
    registered: Registered, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, copied: bool
) -> None:
    """The copy reads and writes its own files; so does MLflow itself."""
    home, _, runs = registered
    new = tmp_path / "new place"
    shutil.copytree(home, new)
    hidden = home.with_name("hidden")
    monkeypatch.setenv("VERGENCE_HOME", str(new))
    if not copied:
        home.rename(hidden)
    try:
        assert load_encoder(f"models:/{NAME}@champion").digest == load_encoder(str(folder_in(new))).digest
        with store(tracking_uri()) as client:
            for location in (
                client.get_run(runs[0]).info.artifact_uri,
                client.get_model_version_download_uri(NAME, "1"),
                client.get_experiment(client.get_run(runs[0]).info.experiment_id).artifact_location,
            ):
                assert location.startswith(new.as_uri())
            client.log_text(runs[copied], "text", "note.txt")  # MLflow remembers a run's place
        assert list(new.rglob("note.txt"))
        assert not list(home.parent.rglob("note.txt"))
    finally:
        if not copied:
            hidden.rename(home)


def folder_in(home: Path) -> Path:
    return home / "run" / "exports"


def test_files_that_did_not_come_along_are_named_with_their_old_place(
    registered: Registered, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, _, _ = registered
    shutil.copy(home / "mlflow.db", tmp_path / "mlflow.db")
    hidden = home.with_name("hidden")
    monkeypatch.setenv("VERGENCE_HOME", str(tmp_path))
    home.rename(hidden)
    try:
        with pytest.raises(UserError, match="its files are missing, they were in") as caught:
            load_encoder(f"models:/{NAME}@champion")
        assert str(home / "artifacts") in str(caught.value)
    finally:
        hidden.rename(home)


def test_reading_a_database_that_has_not_moved_changes_nothing(
    registered: Registered,
) -> None:
    home, _, _ = registered
    before = (home / "mlflow.db").read_bytes()
    load_encoder(f"models:/{NAME}@champion")
    assert (home / "mlflow.db").read_bytes() == before


def test_a_model_that_differs_never_becomes_a_version(
    registered: Registered, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, folder, runs = registered
    with store(tracking_uri()) as client:
        run_id = client.create_run(client.get_run(runs[0]).info.experiment_id).info.run_id
    load = mlflow.pyfunc.load_model

    class Other:
        def __init__(self, model: Any) -> None:
            self.model = model

        def predict(self, images: np.ndarray) -> np.ndarray:
            return self.model.predict(images) + 1e-3

    monkeypatch.setattr(mlflow.pyfunc, "load_model", lambda uri, **more: Other(load(uri, **more)))
    with pytest.raises(VergenceError, match="differs by 1"):
        registry.register(folder, NAME, run_id=run_id, tags={}, tracking_uri=tracking_uri())
    with store(tracking_uri()) as client:
        assert len(client.search_model_versions(f"name = '{NAME}'")) == 2
