"""Encoders: any timm backbone without its classifier; ResNets also narrower and with a small-image stem."""

import difflib
from typing import Any, Literal

import torch
from pydantic import BaseModel, Field, PositiveFloat
from torch import Tensor, nn

from ..torchvision_shim import timm

resnet = timm.models.resnet

ZeroInit = Literal["all", "bottleneck", "none"]
_ZERO_INIT_BLOCKS: dict[ZeroInit, tuple[Any, ...]] = {
    "all": (resnet.BasicBlock, resnet.Bottleneck),
    "bottleneck": (resnet.Bottleneck,),
    "none": (),
}


class EncoderConfig(BaseModel, frozen=True, extra="forbid", strict=True):
    name: str = Field("resnet18", description="timm model name.")
    stem: Literal["default", "cifar"] = Field(
        "default",
        description="cifar: 3x3 convolution of stride 1 and no max-pool, for small images (ResNets).",
    )
    width: PositiveFloat = Field(
        1.0, description="Factor on all channel counts (ResNets); 0.25 gives 16, 32, 64, 128."
    )
    zero_init_residual: bool | None = Field(
        None,
        description="Start every residual branch of a ResNet at zero (gain of its last norm); "
        "default: as the method's authors do.",
    )


class Encoder(nn.Module):
    """Images (n, 3, H, W) -> representations (n, dim): what is exported."""

    def __init__(self, backbone: nn.Module, dim: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.dim = dim

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.backbone(images)
        return features


def build_encoder(config: EncoderConfig, zero_init: ZeroInit = "all") -> Encoder:
    """A freshly initialised encoder in fp32.

    Args:
        config: what to build.
        zero_init: which residual blocks of a ResNet start at zero where the config leaves it open: a method's
            `Config.zero_init_residual`.
    Raises ValueError: timm has no such model, or the model cannot take the stem, width or initialisation.
    """
    if not timm.is_model(config.name):
        close = difflib.get_close_matches(config.name, timm.list_models(), n=3)
        hint = f"did you mean {', '.join(close)}?" if close else "see timm.list_models()"
        raise ValueError(f"encoder.name: timm has no model {config.name!r}; {hint}")
    with torch.device("meta"):  # structure only, no draws
        sketch = timm.create_model(config.name, num_classes=0)
    if isinstance(sketch, resnet.ResNet):
        backbone = _resnet(config, sketch, zero_init)
    else:
        _refuse(config, "is not a ResNet of timm", "stem", "width", "zero_init_residual")
        backbone = timm.create_model(config.name, num_classes=0)
    return Encoder(backbone, int(backbone.head_hidden_size))


def _refuse(config: EncoderConfig, reason: str, *fields: str) -> None:
    for field in fields:
        value = getattr(config, field)
        if value and value != EncoderConfig.model_fields[field].default:  # False asks for nothing
            got = f"{field}={value!r}"
            raise ValueError(f"encoder.{field}: {config.name} {reason} and cannot take {got}; leave it out")


def _resnet(config: EncoderConfig, sketch: Any, zero_init: ZeroInit) -> Any:
    kwargs: dict[str, Any] = {"num_classes": 0, "zero_init_last": False}
    plain = config.stem == "default" and config.width == 1
    if not plain:
        if not isinstance(sketch.conv1, nn.Conv2d):
            _refuse(config, "has a stem of several convolutions", "stem", "width")
        # timm fixes its plain stem at 64 channels, its deep stem at 2 * stem_width: ask for the deep one, so
        # that norm and first stage fit, and put a single convolution in its place.
        half = [max(1, round(channels * config.width / 2)) for channels in (64, 64, 128, 256, 512)]
        kwargs |= {"stem_type": "deep", "stem_width": half[0], "channels": tuple(2 * h for h in half[1:])}
    backbone = timm.create_model(config.name, **kwargs)
    if not plain:
        size, stride = (3, 1) if config.stem == "cifar" else (7, 2)
        backbone.conv1 = nn.Conv2d(3, 2 * half[0], size, stride, padding=size // 2, bias=False)
        nn.init.kaiming_normal_(backbone.conv1.weight, mode="fan_out", nonlinearity="relu")
    if config.stem == "cifar":
        backbone.maxpool = nn.Identity()
    if config.zero_init_residual is not None:
        zero_init = "all" if config.zero_init_residual else "none"
    for block in backbone.modules():
        if isinstance(block, _ZERO_INIT_BLOCKS[zero_init]):
            block.zero_init_last()
    return backbone
