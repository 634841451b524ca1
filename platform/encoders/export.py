"""An encoder that outlives us: a torch.export program that takes pixels, safetensors, and a card."""

import copy
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from pydantic import BaseModel, Field
from safetensors.torch import save_file
from torch import Tensor, nn

from vergence.platform.encoders.resize import RULE
from vergence.platform.errors import VergenceError
from vergence.platform.files import sync
from vergence.platform.schema import SCHEMA, foreign

PROGRAM, WEIGHTS, CARD, README = "encoder.pt2", "encoder.safetensors", "encoder.json", "card.md"
GATE_BATCHES = (1, 7, 64)
TOLERANCE = 1e-5  # between eager and exported, relative to the largest output where that exceeds 1
MAX_BATCH = 2**20


class EncoderCard(BaseModel, frozen=True, extra="forbid", populate_by_name=True):
    """What a reader of encoder.json learns: where the encoder comes from and what it takes and gives."""

    schema_version: int = Field(SCHEMA, alias="schema")
    name: str
    method: str
    backbone: dict[str, Any]  # the recipe's `encoder` section: timm name and what differs from it
    dim: int
    size: int  # input side S, pixels
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    images_seen: int
    recipe_digest: str
    data_digest: str
    code_version: str
    metrics: dict[str, float] = {}
    recipe: dict[str, Any] | None = (
        None  # resolved; builds the encoder as initialised for `evaluate --baselines`
    )


def read_card(path: Path) -> EncoderCard:
    """The card in a file, of this schema or an older one; ValueError: none, or one of a newer version."""
    fields = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(fields, dict):
        raise ValueError("it holds no settings")
    fields.setdefault("schema", 1)
    if fields["schema"] > SCHEMA:
        raise ValueError(f"made by {foreign(fields['schema'])}")
    if fields.get("recipe") is not None:
        fields["recipe"].setdefault("schema", fields["schema"])
    return EncoderCard.model_validate_json(json.dumps(fields))


class PixelEncoder(nn.Module):
    """uint8 (n, S, S, 3) RGB -> float32 (n, dim): scale to [0, 1], normalise, encode."""

    mean: Tensor
    std: Tensor

    def __init__(self, encoder: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.encoder = encoder
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(1, 3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        pixels = images.permute(0, 3, 1, 2).to(torch.float32) / 255
        embedding: Tensor = self.encoder((pixels - self.mean) / self.std)
        return embedding


def export_encoder(encoder: nn.Module, card: EncoderCard, folder: Path) -> Path:
    """Write encoder.pt2, encoder.safetensors, encoder.json and card.md into `folder`.

    The encoder ((n, 3, S, S) float32 -> (n, card.dim)) is copied, to CPU, fp32 and eval mode; the original
    is left alone. The program is loaded back and compared with the copy at batches of 1, 7 and 64 before
    the folder appears; an existing folder is replaced.

    Returns: folder. Raises VergenceError: the program differs from the encoder by more than 1e-5.
    """
    model = (
        PixelEncoder(copy.deepcopy(encoder), card.mean, card.std).cpu().float().eval().requires_grad_(False)
    )
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    try:
        # batch 2: torch.export makes a dimension of 1 a constant, in silence
        example = torch.zeros(2, card.size, card.size, 3, dtype=torch.uint8)
        batch = torch.export.Dim("batch", min=1, max=MAX_BATCH)
        with torch.no_grad():
            program = torch.export.export(model, (example,), dynamic_shapes=({0: batch},))
        torch.export.save(program, draft / PROGRAM)
        check_equal(model, torch.export.load(draft / PROGRAM).module(), card)
        backbone = getattr(model.encoder, "backbone", model.encoder)
        weights = {name: tensor.contiguous() for name, tensor in backbone.state_dict().items()}
        save_file(
            weights,
            draft / WEIGHTS,
            metadata={"card": card.model_dump_json(exclude={"recipe"}, by_alias=True)},
        )
        (draft / CARD).write_text(card.model_dump_json(indent=2, by_alias=True) + "\n", encoding="utf-8")
        (draft / README).write_text(markdown(card), encoding="utf-8")
        _replace(draft, folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return folder


def export_weights(encoder: nn.Module, card: EncoderCard, folder: Path) -> Path:
    """Write encoder.safetensors and encoder.json of an encoder that takes no images of one size; else as above."""
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    try:
        save_file(
            {name: tensor.detach().cpu().contiguous() for name, tensor in encoder.state_dict().items()},
            draft / WEIGHTS,
            metadata={"card": card.model_dump_json(exclude={"recipe"}, by_alias=True)},
        )
        (draft / CARD).write_text(card.model_dump_json(indent=2, by_alias=True) + "\n", encoding="utf-8")
        _replace(draft, folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return folder


class Shape(Protocol):
    """What an encoder is called, takes and gives: a card and a loaded encoder say it."""

    @property
    def name(self) -> str: ...

    @property
    def size(self) -> int: ...

    @property
    def dim(self) -> int: ...


def check_equal(expected: Any, loaded: Any, shape: Shape, tolerance: float = TOLERANCE) -> None:
    """Both map uint8 (n, S, S, 3) to (n, dim) alike at batches of 1, 7, 64; VergenceError otherwise."""
    rng = np.random.default_rng(0)
    for n in GATE_BATCHES:
        images = torch.from_numpy(rng.integers(0, 256, (n, shape.size, shape.size, 3), dtype=np.uint8))
        with torch.no_grad():
            a, b = expected(images), torch.as_tensor(loaded(images))
        allowed = tolerance * max(1.0, float(a.abs().max()))
        if a.shape != (n, shape.dim) or b.shape != a.shape:
            raise VergenceError(
                f"encoder {shape.name}: gives {tuple(b.shape)} for a batch of {n}, dim is {shape.dim}"
            )
        difference = float((a - b).abs().max())
        if not difference <= allowed:  # also when it is NaN
            raise VergenceError(
                f"encoder {shape.name}: loaded back, it differs by {difference:.1e} from the trained one "
                f"at a batch of {n} (allowed {allowed:.0e}); it was not handed over"
            )


def _replace(draft: Path, folder: Path) -> None:
    """Put the finished draft, on the disk, in the folder's place; a rename cannot replace a folder that has files."""
    for path in (*draft.iterdir(), draft):
        sync(path)  # what has the folder's name counts as exported, after a power cut too
    old = folder.with_name(f".{folder.name}.old.{os.getpid()}")
    if folder.exists():
        folder.rename(old)
    draft.rename(folder)
    sync(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def markdown(card: EncoderCard, model: str = "NAME") -> str:
    """The model card; `model` is the name in the registry."""
    backbone = ", ".join(f"{key} {value}" for key, value in card.backbone.items() if value is not None)
    metrics = "".join(f"| {name} | {value:.4g} |\n" for name, value in card.metrics.items())
    return f"""# {card.name}

An image encoder trained without labels by {card.method}: {card.size} x {card.size} RGB pixels in,
{card.dim} float32 numbers out. Made with Vergence {card.code_version}.

## Use

With MLflow (needs mlflow, torch, numpy), once it is registered under a name:

```python
import mlflow
embeddings = mlflow.pyfunc.load_model("models:/{model}@champion").predict(images)
```

With PyTorch alone:

```python
import torch
embeddings = torch.export.load("{PROGRAM}").module()(torch.from_numpy(images))
```

`images`: uint8 array (n, {card.size}, {card.size}, 3), RGB; n is free. Normalisation is inside.
Other sizes: {RULE} (S = {card.size}).
Embeddings are not normalised: divide by the L2 norm for cosine similarity.

To fine-tune, with Vergence: all weights, and a fresh classifier; it trains on (pixels / 255 - mean) / std with
mean {list(card.mean)}, std {list(card.std)}.

```python
from vergence.pipelines import load_encoder
model = load_encoder("{PROGRAM}").trainable(num_classes=10)
```

`{WEIGHTS}` holds the same weights under timm's names.

## Training

| | |
|---|---|
| method | {card.method} |
| backbone | {backbone} |
| images seen | {card.images_seen:,} |
| recipe | {card.recipe_digest} |
| data | {card.data_digest} |
| code | {card.code_version} |
{metrics}"""
