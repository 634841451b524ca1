"""Encoders in MLflow's model registry: registered by the run that trained them, loadable by anybody."""

import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vergence.platform.data.index import Index
from vergence.platform.encoders.export import CARD, PROGRAM, README, check_equal, markdown, read_card
from vergence.platform.encoders.versions import CANDIDATE, CHAMPION
from vergence.platform.masking import masked
from vergence.platform.mlflow_store import store

MAX_DESCRIPTION = 5000  # characters, of MLflow's databases
ABOUT = """\
Encoders of images, pretrained without labels with Vergence: uint8 (n, S, S, 3) RGB in, float32 (n, dim) out; each version's
description is its card.

- `models:/{name}@champion` is what readers load, `@candidate` the newest version, `@previous` champion before.
- `vergence promote {name}` decides; `vergence evaluate models:/{name}/VERSION` keeps its figures with the version.
"""


@dataclass(frozen=True)
class TrainedOn:
    """The data of a run: the pattern that names the shards, and their index."""

    pattern: str
    index: Index


def register(
    folder: Path,
    name: str,
    *,
    run_id: str,
    tags: Mapping[str, Any],
    tracking_uri: str,
    data: TrainedOn | None = None,
) -> int:
    """Register the export in `folder` as a new version of model `name`, made by MLflow run `run_id`.

    The model is logged, loaded back as a stranger would (mlflow.pyfunc) and compared at batches of 1, 7
    and 64; only then is there a version, with `tags`, the alias `candidate`, and `champion` if the name
    has none. Card and safetensors travel inside the model, the card's figures are metrics of it, its text is the
    version's description, and the run names its `data`. A run makes one version of a name: called again for the same
    run, only what is missing is done.

    Returns: the version. Raises VergenceError: the gate failed; MlflowException: the store did.
    """
    with store(tracking_uri, patient=True) as client:
        _create_name(client, name)
        made = client.search_model_versions(f"name = '{name}' and run_id = '{run_id}'")
        if made:
            version = int(made[0].version)
        else:
            model_id = _log_model(client, run_id, folder, name)
            _log_lineage(client, run_id, model_id, folder, data)
            text = {key: masked(str(value)) for key, value in tags.items()}
            source = f"models:/{model_id}"
            told = masked(markdown(read_card(folder / CARD), name))[:MAX_DESCRIPTION]
            row = client.create_model_version(
                name, source, run_id=run_id, tags=text, model_id=model_id, description=told
            )
            version = int(row.version)  # a string over HTTP, an int from SQLite
        aliases = {key: int(value) for key, value in client.get_registered_model(name).aliases.items()}
        if version > max(
            aliases.values(), default=0
        ):  # asked again later, an old version is no candidate any more
            client.set_registered_model_alias(name, CANDIDATE, str(version))
        if CHAMPION not in aliases:
            client.set_registered_model_alias(name, CHAMPION, str(version))
    return version


def _create_name(client: Any, name: str) -> None:
    """Make sure that the registry has the model `name`; what somebody has written about it stays."""
    import mlflow

    try:
        client.create_registered_model(name, description=ABOUT.format(name=name))
    except mlflow.MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _log_model(client: Any, run_id: str, folder: Path, name: str) -> str:
    """Log the exported program under the run, load it back and compare; the id of the logged model."""
    import mlflow.pytorch
    import numpy as np
    import torch
    from mlflow.entities import LoggedModelOutput
    from mlflow.models import ModelSignature
    from mlflow.types.schema import Schema, TensorSpec

    card = read_card(folder / CARD)
    module = torch.export.load(folder / PROGRAM).module()
    shape = (card.size, card.size, 3)
    # made by hand: log_model would put it into the default experiment, whose artifacts are in the cwd
    model_id: str = client.create_logged_model(
        client.get_run(run_id).info.experiment_id, name="encoder", source_run_id=run_id, model_type="encoder"
    ).model_id
    with tempfile.TemporaryDirectory() as temporary:
        readme = Path(temporary) / README
        readme.write_text(markdown(card, name), encoding="utf-8")
        beside = [path for path in sorted(folder.iterdir()) if path.name not in (PROGRAM, README)]
        extra = [path.absolute().as_uri() for path in (*beside, readme)]  # MLflow would decode a plain path
        mlflow.pytorch.log_model(
            module,
            name="encoder",
            model_id=model_id,
            serialization_format="pt2",
            signature=ModelSignature(
                Schema([TensorSpec(np.dtype("uint8"), (-1, *shape))]),
                Schema([TensorSpec(np.dtype("float32"), (-1, card.dim))]),
            ),
            input_example=np.zeros((2, *shape), np.uint8),  # a batch of 1 would be exported as a constant
            pip_requirements=[f"torch=={torch.__version__.split('+')[0]}", f"numpy=={np.__version__}"],
            extra_files=extra,
            metadata={"method": card.method, "dim": card.dim, "size": card.size},
        )
    client.log_outputs(run_id, [LoggedModelOutput(model_id, step=0)])
    with (
        tempfile.TemporaryDirectory() as copy
    ):  # where it lies MLflow cannot load it if the path has a % ? or #
        stranger = mlflow.pyfunc.load_model(f"models:/{model_id}", dst_path=copy)
    check_equal(module, lambda images: stranger.predict(images.numpy()), card)
    return model_id


def _log_lineage(client: Any, run_id: str, model_id: str, folder: Path, data: TrainedOn | None) -> None:
    """What the model was trained on, as an input of its run, and the card's figures, as metrics of the model."""
    from mlflow.entities import Metric

    from vergence.platform.encoders.lineage import ShardsDataset, training_input

    dataset: dict[str, str] = {}
    if data is not None:
        trained_on = ShardsDataset(data.pattern, data.index)
        client.log_inputs(run_id, datasets=[training_input(trained_on)])
        dataset = {"dataset_name": trained_on.name, "dataset_digest": trained_on.digest}
    now = int(time.time() * 1000)
    metrics = [
        Metric(key, value, now, 0, model_id, run_id=run_id, **dataset)
        for key, value in read_card(folder / CARD).metrics.items()
    ]
    client.log_batch(run_id, metrics=metrics)
