"""Initial weights of an encoder: timm's own, those of a file, or those that a run has exported."""

import hashlib
import logging
import math
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from vergence.methods.method import Encoder
from vergence.methods.parts.backbones import EncoderConfig
from vergence.methods.parts.vision_transformer import sincos
from vergence.methods.torchvision_shim import timm
from vergence.platform import yaml
from vergence.platform.encoders.export import WEIGHTS, EncoderCard
from vergence.platform.encoders.load import load_encoder
from vergence.platform.errors import UserError
from vergence.platform.home import home

State = dict[str, Tensor]
# settings in which an encoder may differ from the one that its weights are of
FREE = (
    "pretrained",
    "image_size",
    "drop_path",
    "init",
    "zero_init_residual",
    "freeze_patches",
    "positions",
    "grid",
)
PICKLES = (".pth", ".pt", ".ckpt", ".bin", ".npz")
FEW = 3  # misfits that are named
REACHED_S = 5.0  # within which a hub answers
COUNTER = "num_batches_tracked"  # of batch norms; nothing depends on it


class Initial(NamedTuple):
    """The whole state of an encoder before step 0."""

    state: State
    where: str  # the weights are from, in words
    resampled: tuple[str, ...]  # `name old shape -> new shape` of what timm has interpolated

    @property
    def digest(self) -> str:
        """sha256 of names, shapes, types and values."""
        known = hashlib.sha256()
        for name, value in sorted(self.state.items()):
            known.update(f"{name} {value.dtype} {list(value.shape)}\n".encode())
            known.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        return known.hexdigest()

    def keep(self, file: Path) -> None:
        """Write the state, for each rank to read."""
        draft = file.with_name(f".{file.name}.{os.getpid()}")
        save_file({name: value.contiguous() for name, value in self.state.items()}, draft)
        draft.replace(file)


class Weights(NamedTuple):
    """Of a backbone, by timm's names."""

    state: State
    where: str
    made_as: EncoderConfig | None = None  # as its card says


def fill(encoder: Encoder, config: EncoderConfig) -> Initial:
    """Give the encoder, built from `config`, the weights that `config.pretrained` names, all of them.

    What timm knows to interpolate for another image size (positions) is interpolated; a classifier is left out.
    Raises UserError: there are no such weights, or they are another network's, with the names that do not fit.
    """
    assert config.pretrained is not None, "somebody asks for weights"
    asked = f"encoder.pretrained={'true' if config.pretrained is True else config.pretrained}"
    weights = _read(config.pretrained, config, asked)
    backbone: Any = getattr(encoder, "backbone", encoder)  # encoders of signals have none
    expected: State = backbone.state_dict()
    given = _adapted(backbone, weights.state)
    if config.positions == "sincos" and "pos_embed" in weights.state:
        _refuse_learned(weights.state["pos_embed"], asked)
        given["pos_embed"] = expected["pos_embed"]
    given |= {key: expected[key] for key in expected.keys() - given.keys() if key.endswith(COUNTER)}
    misfits = _misfits(expected, given)
    if misfits:
        shown = ", ".join(misfits[:FEW]) + (f" and {len(misfits) - FEW} more" if len(misfits) > FEW else "")
        raise UserError(
            f"{asked}: not weights of {config.name} as it is built here: {shown}; {_cure(config, weights)}"
        )
    if cure := _of_card(config, weights):  # it has the same shapes, and would make something else of them
        raise UserError(f"{asked}: weights of another {config.name}; {cure}")
    backbone.load_state_dict(given)
    resampled = tuple(
        f"{key} {_shape(value)} -> {_shape(given[key])}"
        for key, value in weights.state.items()
        if key in given and value.shape != given[key].shape
    )
    return Initial(
        {key: value.clone() for key, value in encoder.state_dict().items()}, weights.where, resampled
    )


def _read(pretrained: Literal[True] | str, config: EncoderConfig, asked: str) -> Weights:
    if pretrained is True:
        return _of_timm(config.name, asked)
    path = Path(pretrained).expanduser()
    if path.suffix in PICKLES:
        raise UserError(
            f"{asked}: give the weights as FILE.safetensors (safetensors.torch.save_file writes one)"
        )
    if path.suffix == ".safetensors":
        return _of_file(path, f"{path}", asked)
    for folder in (path, path / "exports", home() / pretrained / "exports"):
        if (folder / WEIGHTS).is_file():
            return _of_file(folder / WEIGHTS, f"the encoder of {pretrained}", asked)
    try:
        loaded = load_encoder(pretrained)
    except UserError as error:
        raise UserError(f"{asked}: {error}; or true, or FILE.safetensors") from None
    made_as = None if loaded.card is None else _config_of(loaded.card.backbone)
    return Weights(loaded.backbone_weights, f"the encoder {loaded.name}", made_as)


def _of_timm(name: str, asked: str) -> Weights:
    known = timm.get_pretrained_cfg(name)
    if known is None or not known.has_weights:
        raise UserError(f"{asked}: timm has no weights for {name}; leave it out, or give FILE.safetensors")
    source = known.hf_hub_id or known.url or name
    cached = _cached(known.hf_hub_id) if known.hf_hub_id else None
    if cached is not None:
        return _of_file(cached, f"timm's {source}", asked)
    elsewhere = (
        "fetch them where there is a network and give encoder.pretrained=FILE.safetensors, or leave it out"
    )
    if known.hf_hub_id and not _is_reachable():  # else each of timm's two tries takes half a minute to fail
        raise UserError(f"{asked}: {source} cannot be downloaded here, the hub does not answer; {elsewhere}")
    try:
        model = timm.create_model(name, pretrained=True)
    except Exception as error:  # the hub's, the network's, the disk's: each library under timm has its own
        raise UserError(
            f"{asked}: {source} cannot be downloaded here ({_line(error)}); {elsewhere}"
        ) from None
    return Weights(model.state_dict(), f"timm's {source}")


def _cached(hub_id: str) -> Path | None:
    """The weights, where a download has left them before."""
    from huggingface_hub import constants, try_to_load_from_cache

    repository, _, revision = hub_id.partition("@")
    file = try_to_load_from_cache(repository, "model.safetensors", constants.HF_HUB_CACHE, revision or None)
    return Path(file) if isinstance(file, str) else None


def _is_reachable() -> bool:
    from huggingface_hub import constants, get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=REACHED_S)
    except Exception:  # of the network, of the proxy, or that it is to stay offline
        return False
    return True


def _of_file(path: Path, where: str, asked: str) -> Weights:
    try:
        with safe_open(path, framework="pt") as file:
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 -- it has no __iter__
            card = (file.metadata() or {}).get("card")
    except FileNotFoundError:
        raise UserError(f"{asked}: there is no such file") from None
    except (SafetensorError, OSError) as error:
        raise UserError(f"{asked}: {path} is no whole safetensors file ({_line(error)})") from None
    try:
        made_as = None if card is None else _config_of(EncoderCard.model_validate_json(card).backbone)
    except ValidationError:  # somebody else's card
        made_as = None
    return Weights(state, where, made_as)


def _config_of(backbone: Mapping[str, Any]) -> EncoderConfig | None:
    try:
        return EncoderConfig.model_validate(dict(backbone), strict=False)
    except ValidationError:  # of another version of Vergence
        return None


def _adapted(backbone: nn.Module, state: State) -> State:
    """As timm's own loader does: its names, positions of the model's grid, no classifier."""
    known = getattr(backbone, "pretrained_cfg", None) or {}
    adapt = vars(sys.modules[type(backbone).__module__]).get("checkpoint_filter_fn")
    heads = known.get("classifier") or ()
    left_out = {
        f"{head}.{kind}"
        for head in ([heads] if isinstance(heads, str) else heads)
        for kind in ("weight", "bias")
    }
    left_out -= backbone.state_dict().keys()
    given = {key: value for key, value in state.items() if key not in left_out}
    if adapt is None:
        return given
    log = logging.getLogger("timm")
    level = log.level
    log.setLevel(logging.ERROR)  # what it interpolates is told by us
    try:
        adapted = adapt(dict(given), backbone)
    except Exception:  # another architecture's names or shapes; they are told by us, too
        return given
    finally:
        log.setLevel(level)
    return {key: value for key, value in adapted.items() if key not in left_out}


def _refuse_learned(positions: Tensor, asked: str) -> None:
    """Fixed positions are computed for this size; learned ones cannot be put in their place unnoticed."""
    side = math.isqrt(positions.shape[1])
    prefix = positions.shape[1] - side * side
    table = sincos(side, side, positions.shape[2])
    if not torch.allclose(positions[0, prefix:], table, atol=1e-5):
        raise UserError(f"{asked}: its positions are learned, got encoder.positions=sincos; leave that out")


def _misfits(expected: State, given: State) -> list[str]:
    """Names that are missing, of another shape, or have no place."""
    absent = [f"none for {key}" for key in expected if key not in given]
    other = [
        f"{key} is {_shape(given[key])}, needs {_shape(value)}"
        for key, value in expected.items()
        if key in given and given[key].shape != value.shape
    ]
    return other + absent + [f"no place for {key}" for key in given if key not in expected]


def _cure(config: EncoderConfig, weights: Weights) -> str:
    return _of_card(config, weights) or (
        "set encoder.name, stem, width, patch_size, pool to those of the network that they are of"
    )


def _of_card(config: EncoderConfig, weights: Weights) -> str:
    """The settings of which the weights are, where they are others and a card tells; else empty."""
    if weights.made_as is None:
        return ""
    here, there = (each.model_dump(mode="json", exclude=set(FREE)) for each in (config, weights.made_as))
    told = [f"encoder.{key}={yaml.dump_inline(value)}" for key, value in there.items() if value != here[key]]
    return f"set {' '.join(told)}, as their card says" if told else ""


def _shape(value: Tensor) -> str:
    return "x".join(map(str, value.shape)) or "a number"


def _line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:160]}" if lines else type(error).__name__
