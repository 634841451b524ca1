"""An encoder in the forms that others read: torch's program, safetensors, ONNX, a folder of timm's.

Each is made from the program itself, loaded back as its readers do and compared at batches of 1, 7 and 64 before it
has its name.
"""

import importlib.util
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from vergence.methods.torchvision_shim import timm
from vergence.platform.encoders.encoder import LoadedEncoder
from vergence.platform.encoders.export import PixelEncoder, check_equal
from vergence.platform.encoders.rebuild import plain_timm, refuse_parts
from vergence.platform.errors import UserError
from vergence.platform.files import replacing

ONNX_PACKAGES = ("onnx", "onnxruntime", "onnxscript")
ONNX_TOLERANCE = 1e-4  # another library's convolutions, relative to the largest output where that exceeds 1
ONNX_MOST_BYTES = 2**31 - 2**24  # that protobuf holds, less what is not weights
TIMM_FILES = ("config.json", "model.safetensors")


def write_program(encoder: LoadedEncoder, out: Path) -> None:
    """torch.export's archive; its readers need torch alone."""
    with replacing(out) as draft:
        with draft.open("wb") as stream:
            torch.export.save(encoder.program, stream)
        with draft.open("rb") as stream:
            loaded = torch.export.load(stream).module()
        check_equal(encoder.program.module(), loaded, encoder)


def write_weights(encoder: LoadedEncoder, out: Path) -> None:
    """safetensors of the backbone under timm's names, the card in its metadata.

    Raises UserError: the program has no backbone of timm's, or it sees something else than a picture's colours.
    """
    refuse_parts(encoder)
    weights = {name: tensor.clone().contiguous() for name, tensor in _weights(encoder).items()}
    card = encoder.card
    about = {"card": card.model_dump_json(exclude={"recipe"}, by_alias=True)} if card else None
    with replacing(out) as draft:
        save_file(weights, draft, metadata=about)
        loaded = load_file(draft)
        assert loaded.keys() == weights.keys(), "safetensors keeps names"
        assert all(torch.equal(loaded[name], weights[name]) for name in weights), "safetensors keeps bits"


def write_onnx(encoder: LoadedEncoder, out: Path) -> None:
    """One ONNX file: `image` uint8 (n, S, S, 3) -> `embedding` float32 (n, dim), the card in its metadata.

    Raises UserError: a package is missing, or the weights are more than the 2 GB that one file holds; VergenceError:
    onnxruntime gives something else than the program.
    """
    missing = [name for name in ONNX_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"format onnx: needs {', '.join(missing)}: pip install 'vergence[onnx]'")
    num_bytes = sum(tensor.nbytes for tensor in encoder.program.state_dict.values())
    if num_bytes > ONNX_MOST_BYTES:
        raise UserError(
            f"{encoder.name}: has {num_bytes:,} bytes of weights, one ONNX file holds {ONNX_MOST_BYTES:,}; export it as pt2"
        )
    import onnxruntime

    example = torch.zeros(2, encoder.size, encoder.size, 3, dtype=torch.uint8)
    made = torch.onnx.export(
        encoder.program, (example,), input_names=["image"], output_names=["embedding"], verbose=False
    )
    assert made is not None, "torch.onnx.export gives a program when it is given no file"
    if encoder.card is not None:
        made.model.metadata_props["card"] = encoder.card.model_dump_json(exclude={"recipe"}, by_alias=True)
    with replacing(out) as draft:
        made.save(draft, external_data=False)
        session = onnxruntime.InferenceSession(draft, providers=["CPUExecutionProvider"])

        def run(images: Tensor) -> Any:
            return session.run(["embedding"], {"image": images.numpy()})[0]

        check_equal(encoder.program.module(), run, encoder, ONNX_TOLERANCE)


def write_timm(encoder: LoadedEncoder, out: Path) -> None:
    """A folder that `timm.create_model("local-dir:OUT", pretrained=True)` loads: config.json and model.safetensors.

    Raises UserError: there is no card, or the backbone is one that timm alone cannot build.
    """
    model: Any = plain_timm(encoder)
    card = encoder.card
    assert card is not None, "plain_timm needs one"
    pixels = {
        "input_size": (3, card.size, card.size),
        "mean": card.mean,
        "std": card.std,
        "interpolation": "bilinear",
        "crop_pct": 1.0,
    }
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".", dir=out) as draft:
        timm.models.save_for_hf(model, draft, safe_serialization=True, data_config=pixels)
        made = timm.create_model(f"local-dir:{draft}", pretrained=True).eval()
        check_equal(encoder.program.module(), PixelEncoder(made, card.mean, card.std), encoder)
        for name in TIMM_FILES:
            with replacing(out / name) as temporary:
                (Path(draft) / name).rename(temporary)


def _weights(encoder: LoadedEncoder) -> Mapping[str, Tensor]:
    weights = encoder.backbone_weights
    if not weights:
        raise UserError(f"{encoder.name}: its program holds no backbone of timm's; export it as pt2 or onnx")
    return weights


FORMATS: dict[str, Callable[[LoadedEncoder, Path], None]] = {
    "pt2": write_program,
    "safetensors": write_weights,
    "onnx": write_onnx,
    "timm": write_timm,
}
