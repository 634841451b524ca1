"""From a card and weights to a module that trains: to fine-tune, to probe, to look at feature maps."""

import json
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any, cast

from pydantic import ValidationError
from torch import Tensor, nn

from vergence.methods.method import Encoder
from vergence.methods.parts.backbones import STAGES, EncoderConfig, build_encoder, timm_arguments
from vergence.methods.torchvision_shim import timm
from vergence.platform.encoders.export import CARD, PROGRAM, EncoderCard
from vergence.platform.errors import UserError

if TYPE_CHECKING:
    from vergence.platform.encoders.encoder import LoadedEncoder

TIMM_LACKS = {
    "stem",
    "width",
    "norm",
    "sk_ratio",
    "edges",
}  # settings of a backbone that timm.create_model does not know
REFUSALS = (TypeError, ValueError, RuntimeError, AssertionError)  # each model of timm has its own way


def trainable(name: str, card: EncoderCard | None, weights: Mapping[str, Tensor]) -> Encoder:
    """The encoder that the card describes, in training mode, with a copy of these weights of its backbone.

    Raises UserError: there is no card, or what it describes cannot be built here or does not take the weights.
    """
    try:
        encoder = build_encoder(_config(name, card), image_size=card.size if card else None)
    except ValueError as error:
        raise UserError(f"{name}: {_line(error)}") from None
    _fill(encoder.get_submodule("backbone"), weights, name)
    return encoder.train()


def timm_backbone(encoder: "LoadedEncoder", num_classes: int = 0, **changes: Any) -> nn.Module:
    """A timm model with the encoder's weights and a fresh classifier, in training mode: for fine-tuning.

    Args:
        encoder: what `load_encoder` gives.
        num_classes: outputs of the new classifier; 0: none, it gives the (n, dim) representation.
        changes: more arguments of timm.create_model, such as drop_path_rate.
    Returns: (n, 3, H, W) float32, normalised by the card's mean and std, -> (n, num_classes or dim).
    Raises UserError: there is no card; changes to a backbone that is not timm's own; what timm does not take; the backbone
        sees something else than a picture's colours.
    """
    seen = _seen(_config(encoder.name, encoder.card))
    if seen:
        raise UserError(
            f"{encoder.name}: its backbone sees {seen}, so it is no model of pictures by itself; train `.module` of what "
            "load_encoder gives, with a classifier of your own"
        )
    if changes:
        return _with_changes(encoder, num_classes, changes).train().to(encoder.device)
    whole = trainable(encoder.name, encoder.card, encoder.backbone_weights)
    model: Any = whole.get_submodule("backbone")
    if num_classes:
        model.reset_classifier(num_classes)
    return cast(nn.Module, model.to(encoder.device))


def plain_timm(encoder: "LoadedEncoder") -> nn.Module:
    """What timm.create_model makes of the card, with the encoder's weights, in eval mode on the CPU.

    Raises UserError: there is no card, or the backbone is one that timm alone cannot build.
    """
    config = _config(encoder.name, encoder.card)
    refuse_parts(encoder)
    own = _own_settings(config)
    if own:
        raise UserError(
            f"{encoder.name}: its backbone is {config.name} with {own}, which timm.create_model cannot build; export it as "
            "pt2 or onnx, or train it on by `timm_backbone` of vergence.pipelines"
        )
    return _created(encoder, config, 0, {}).eval()


def _with_changes(encoder: "LoadedEncoder", num_classes: int, changes: Mapping[str, Any]) -> nn.Module:
    """The backbone as timm.create_model makes it with these arguments."""
    config = _config(encoder.name, encoder.card)
    own = _own_settings(config)
    if own:
        raise UserError(
            f"{encoder.name}: its backbone is {config.name} with {own}, which timm.create_model cannot build, so it "
            f"takes no {', '.join(changes)}; leave that out, or change the model that you get without"
        )
    return _created(encoder, config, num_classes, changes)


def refuse_parts(encoder: "LoadedEncoder") -> None:
    """Raises UserError: its card says that its backbone sees something else than a picture's colours."""
    seen = _seen(_config(encoder.name, encoder.card)) if encoder.card else ""
    if seen:
        raise UserError(
            f"{encoder.name}: its backbone sees {seen}: whoever fills a timm model with its weights has another encoder; "
            "export it as pt2 or onnx"
        )


def _seen(config: EncoderConfig) -> str:
    """What the backbone sees in the place of a picture, in words; empty: the picture."""
    if config.edges:
        return "a picture's edges"
    if config.split:
        return f"one part of its {config.split} colours each"
    return f"one patch of {config.grid.patch} pixels at a time" if config.grid else ""


def _own_settings(config: EncoderConfig) -> str:
    """Settings that timm's own form of the backbone does not have; empty if it is timm's."""
    own = config.model_dump(exclude_defaults=True, include=TIMM_LACKS)
    shape = {"stages": STAGES[config.name]} if config.name in STAGES else {}
    return ", ".join(f"{key}={value}" for key, value in (shape | own).items())


def _created(
    encoder: "LoadedEncoder", config: EncoderConfig, num_classes: int, changes: Mapping[str, Any]
) -> nn.Module:
    """timm's model with the encoder's weights; UserError: timm does not take the arguments."""
    try:
        arguments = {**timm_arguments(config, encoder.size), **changes}
        model = timm.create_model(config.name, num_classes=num_classes, **arguments)
    except REFUSALS as error:
        given = ", ".join(f"{key}={value}" for key, value in changes.items())
        raise UserError(
            f"{encoder.name}: timm cannot build {config.name} with {given}: {_line(error)}"
        ) from None
    _fill(model, encoder.backbone_weights, encoder.name, fresh=_classifier(model))
    return model


def _config(name: str, card: EncoderCard | None) -> EncoderConfig:
    if card is None:
        raise UserError(
            f"{name}: it cannot be built without its card {CARD}, which is not beside this encoder"
        )
    try:
        return EncoderConfig.model_validate_json(json.dumps(card.backbone))
    except ValidationError as error:
        wrong = ", ".join(".".join(map(str, each["loc"])) for each in error.errors())
        raise UserError(
            f"{name}: its backbone {card.backbone.get('name')} was described by Vergence {card.code_version} with settings "
            f"that this version does not know ({wrong}); the program {PROGRAM} works all the same, but does not train"
        ) from None


def _classifier(model: Any) -> set[str]:
    """Names of the parameters that a new classifier brings along."""
    brought = {id(parameter) for parameter in model.get_classifier().parameters()}
    return {key for key, parameter in model.named_parameters() if id(parameter) in brought}


def _fill(module: nn.Module, state: Mapping[str, Tensor], name: str, fresh: Collection[str] = ()) -> None:
    """Copy the weights, all of them and to all places but the fresh ones; UserError where they do not fit."""
    try:
        missing, unexpected = module.load_state_dict(state, strict=False)
    except RuntimeError as error:  # other shapes
        lines = str(error).splitlines()
        raise UserError(f"{name}: its weights do not fit what was built: {lines[-1].strip()}") from None
    missing = [key for key in missing if key not in fresh]
    if missing or unexpected:
        shown = [*(f"none for {key}" for key in missing), *(f"no place for {key}" for key in unexpected)]
        raise UserError(
            f"{name}: its weights do not fit what timm {timm.__version__} builds: {', '.join(shown[:3])}"
            f"{', ...' if len(shown) > 3 else ''}"
        )


def _line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
