"""Encoders: any timm backbone without its classifier; ResNets and ViTs also in the forms that methods want.

Of sequences: a backbone on each patch of an image, or convolutions over a signal.
"""

import difflib
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, Field, PositiveFloat, PositiveInt
from torch import Tensor, nn

from ..method import Encoder
from ..torchvision_shim import timm
from . import colour, edges, resnet161, vision_transformer
from .norms import NORM, NormName, replace_batch_norms
from .patches import GridConfig, GridEncoder
from .precision import full
from .signals import CHANNELS, SIGNALS, Signal
from .vision_transformer import VisionTransformer

resnet, sknet = timm.models.resnet, timm.models.sknet
selective_kernel = timm.layers.selective_kernel

ZeroInit = Literal["all", "bottleneck", "none"]
_ZERO_INIT_BLOCKS: dict[ZeroInit, tuple[Any, ...]] = {
    "all": (
        resnet.BasicBlock,
        resnet.Bottleneck,
        sknet.SelectiveKernelBasic,
        sknet.SelectiveKernelBottleneck,
    ),
    "bottleneck": (resnet.Bottleneck, sknet.SelectiveKernelBottleneck),
    "none": (),
}
_OF_SIGNALS = ("strides", "inputs")
_OF_RESNETS = ("stem", "width", "zero_init_residual", "norm", "split", "sk_ratio")
_OF_VITS = ("patch_size", "depth", "heads", "init", "pool", "positions", "freeze_patches")
_OF_IMAGES = (
    "image_size",
    "drop_path",
    "grid",
    "edges",
    "stem",
    "zero_init_residual",
    "split",
    "sk_ratio",
    *_OF_VITS,
)
_LEAST_SELECTING = 32  # channels that choose between kernels, as in SimCLR v2's code
STAGES = {"resnet161": resnet161.CHANNELS}  # of shapes that timm alone does not know: channels by stage


class EncoderConfig(BaseModel, frozen=True, extra="forbid", strict=True):
    name: str = Field(
        "resnet18",
        description="timm model name, or resnet161, CPC v2's; "
        f"or {', '.join(SIGNALS)}: convolutions over sounds, texts, arrays of vectors.",
    )
    pretrained: Literal[True] | str | None = Field(
        None,
        description="initial weights, read before step 0 only: true: those that timm downloads for the model; "
        "FILE.safetensors: by timm's names; RUN: its exported encoder, to go on under another method",
    )
    stem: Literal["default", "cifar"] = Field(
        "default",
        description="cifar: 3x3 convolution of stride 1 and no max-pool, for small images (ResNets).",
    )
    width: PositiveFloat = Field(
        1.0,
        description="Factor on all channel counts (ResNets, of 64 to 512; convolutions over signals, of 512); 0.25 gives "
        "16, 32, 64, 128.",
    )
    image_size: PositiveInt | None = Field(
        None,
        description="side in pixels at which it is monitored and exported, and of a ViT's grid of positions; "
        "default: that of the largest view",
    )
    norm: NormName | None = Field(
        None,
        description=f"norm (ResNets; over signals layer or none): {NORM} Default: the model's",
    )
    drop_path: float = Field(
        0.0, ge=0, lt=1, description="largest probability of dropping a residual branch; never in a teacher"
    )
    patch_size: PositiveInt | None = Field(
        None, description="side of a patch in pixels (ViTs); default: the model's"
    )
    depth: PositiveInt | None = Field(None, description="number of blocks (ViTs); default: the model's")
    heads: PositiveInt | None = Field(
        None, description="attention heads of a block (ViTs); they divide the width; default: the model's"
    )
    init: Literal["timm", "moco"] = Field(
        "timm",
        description="initial weights (ViTs): timm's, or uniform ones by fan-in and fan-out as in MoCo v3",
    )
    pool: Literal["cls", "mean"] | None = Field(
        None, description="class token, or mean of the others (ViTs); default: the model's"
    )
    positions: Literal["learned", "sincos"] = Field(
        "learned", description="position embeddings (ViTs): learned, or fixed; other sizes interpolate them"
    )
    freeze_patches: bool = Field(False, description="leave the projection of patches at random (ViTs)")
    split: Literal["lab", "ydbdr", "rgb"] | None = Field(
        None,
        description="a backbone for each part of the colours (ResNets): L and ab, Y and DbDr, or red, green and blue; "
        "their representations side by side; pixels in [0, 1] (data.mean 0, data.std 1)",
    )
    edges: bool = Field(
        False,
        description="Sobel's filters first: the backbone sees two gradients of the gray picture, no colours (DeepCluster)",
    )
    sk_ratio: Annotated[float, Field(gt=0, le=1)] | None = Field(
        None,
        description="channels that choose between selective kernels (SKNets), as a share of those chosen, at least 32; "
        "SimCLR v2: 0.0625; default: the model's",
    )
    zero_init_residual: bool | None = Field(
        None,
        description="Start every residual branch of a ResNet at zero (gain of its last norm); "
        "default: as the method's authors do.",
    )
    grid: GridConfig | None = Field(
        None, description="encode overlapping patches one by one; the representation is their mean"
    )
    strides: tuple[PositiveInt, ...] | None = Field(
        None,
        min_length=1,
        description="of the convolutions over a signal, each over two strides; default: "
        + ", ".join(f"{name} {list(kind.strides)}" for name, kind in SIGNALS.items()),
    )
    inputs: PositiveInt | None = Field(None, description="numbers in a vector (vectors)")


class TimmEncoder(Encoder):
    """A backbone of timm; its parameters are called `backbone.NAME`."""

    def __init__(self, backbone: nn.Module, dim: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.dim = dim

    def forward(self, images: Tensor) -> Tensor:
        h: Tensor = self.backbone(images)
        return h

    def features(self, images: Tensor) -> Tensor:
        """As `Encoder.features`; a ViT's class token comes before the others."""
        features: Tensor = self.backbone.forward_features(images)  # type: ignore[operator]
        return features

    def pool(self, features: Tensor) -> Tensor:
        h: Tensor = self.backbone.forward_head(features)  # type: ignore[operator]
        return h

    def cells(self, features: Tensor) -> Tensor:
        if features.dim() == 4:
            return super().cells(features)
        return features[:, int(getattr(self.backbone, "num_prefix_tokens", 0)) :]


class EdgeEncoder(TimmEncoder):
    """A backbone of the two gradients of an image in the place of its colours."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(edges.gradient(images))

    def features(self, images: Tensor) -> Tensor:
        return super().features(edges.gradient(images))


Colours = Callable[[Tensor], Tensor]
SPLITS: dict[str, tuple[Colours, tuple[int, ...]]] = {  # colour space, channels of each part
    "lab": (colour.lab, (1, 2)),
    "ydbdr": (colour.ydbdr, (1, 2)),
    "rgb": (colour.rgb, (1, 1, 1)),
}


class SplitEncoder(Encoder):
    """A backbone for each part of the colours of pixels in [0, 1]; h is their representations side by side."""

    def __init__(self, split: str, backbones: Sequence[Any]) -> None:
        super().__init__()
        self.colours, self.channels = SPLITS[split]
        self.backbone = nn.ModuleList(backbones)
        self.part_dims = tuple(int(backbone.head_hidden_size) for backbone in backbones)
        self.dim = sum(self.part_dims)

    def forward(self, images: Tensor) -> Tensor:
        return torch.cat(self._representations(images), dim=1)

    def parts(self, images: Tensor) -> tuple[list[Tensor], Tensor]:
        """As `Encoder.parts`: a picture has all of its colours."""
        present = torch.ones(len(images), len(self.part_dims), device=images.device)
        return self._representations(images), present

    def _representations(self, images: Tensor) -> list[Tensor]:
        channels = self.colours(full(images)).split(self.channels, dim=1)
        return [backbone(part) for backbone, part in zip(self.backbone, channels, strict=True)]


def build_encoder(
    config: EncoderConfig, zero_init: ZeroInit = "all", image_size: int | None = None
) -> Encoder:
    """A freshly initialised encoder in fp32.

    Args:
        config: what to build; `pretrained` is for the caller, who knows whether the encoder begins.
        image_size: side in pixels where the config leaves it open.
        zero_init: which residual blocks of a ResNet start at zero where the config leaves it open: a method's
            `Config.zero_init_residual`.
    Raises ValueError: timm has no such model, or the model cannot take the stem, width or initialisation.
    """
    if config.name in SIGNALS:
        return _signal(config)
    _refuse(config, "is a model of timm", *_OF_SIGNALS)
    if config.edges and (config.split is not None or config.grid is not None):
        other = "split" if config.split is not None else "grid"
        raise ValueError(f"encoder.edges: it is for a backbone of whole images; leave out encoder.{other}")
    if config.split is not None:
        if config.grid is not None:
            raise ValueError(
                "encoder.split: an encoder of patches (encoder.grid) sees all colours; leave one out"
            )
        channels = SPLITS[config.split][1]
        return SplitEncoder(config.split, [_backbone(config, zero_init, image_size, k) for k in channels])
    if config.grid is None:
        backbone = _backbone(config, zero_init, image_size, 2 if config.edges else 3)
        kind = EdgeEncoder if config.edges else TimmEncoder
        return kind(backbone, int(backbone.head_hidden_size))
    of_patch = config.model_copy(update={"image_size": None})
    backbone = _backbone(of_patch, zero_init, config.grid.patch)
    return GridEncoder(backbone, int(backbone.head_hidden_size), config.grid)


def _backbone(config: EncoderConfig, zero_init: ZeroInit, image_size: int | None, channels: int = 3) -> Any:
    if not timm.is_model(config.name):
        close = difflib.get_close_matches(config.name, timm.list_models(), n=3)
        hint = f"did you mean {', '.join(close)}?" if close else "see timm.list_models()"
        raise ValueError(f"encoder.name: timm has no model {config.name!r}; {hint}")
    sketch = _sketch(config.name)
    if not isinstance(sketch, resnet.ResNet):
        _refuse(config, "is not a ResNet of timm", *_OF_RESNETS)
    if not isinstance(sketch, VisionTransformer):
        _refuse(config, "is no vision transformer of timm", *_OF_VITS)
    arguments = {"num_classes": 0, "in_chans": channels, **timm_arguments(config, image_size)}
    if isinstance(sketch, resnet.ResNet):
        backbone = _resnet(config, sketch, arguments, zero_init)
    else:
        if config.init == "moco":
            arguments["weight_init"] = "moco"
        backbone = timm.create_model(config.name, **arguments)
        if config.init == "moco":
            vision_transformer.spread_patches(backbone)
        if config.positions == "sincos":
            vision_transformer.fix_positions(backbone)
        if config.freeze_patches:
            vision_transformer.freeze_patches(backbone)
    return backbone


def _signal(config: EncoderConfig) -> Signal:
    _refuse(config, "takes no images", *_OF_IMAGES)
    if config.norm not in (None, "none", "layer"):
        raise ValueError(f"encoder.norm: {config.name} takes layer or none, got {config.norm}")
    if (config.inputs is None) == (config.name == "vectors"):
        raise ValueError("encoder.inputs: give the numbers in a vector for vectors, and nothing otherwise")
    name = next(name for name in SIGNALS if name == config.name)
    return Signal(
        name,
        channels=max(1, round(CHANNELS * config.width)),
        strides=config.strides or SIGNALS[name].strides,
        inputs=config.inputs or 1,
        normed=config.norm == "layer",
    )


def timm_arguments(config: EncoderConfig, image_size: int | None = None) -> dict[str, Any]:
    """What timm.create_model takes of the config, besides the name; image_size: where the config leaves it open."""
    arguments: dict[str, Any] = {"drop_path_rate": config.drop_path or None}
    if isinstance(_sketch(config.name), VisionTransformer):
        arguments |= {
            "img_size": config.image_size or image_size,
            "dynamic_img_size": True,
            "patch_size": config.patch_size,
            "depth": config.depth,
            "num_heads": config.heads,
            "global_pool": config.pool and {"cls": "token", "mean": "avg"}[config.pool],
        }
    return {key: value for key, value in arguments.items() if value is not None}


def _sketch(name: str) -> Any:
    """The model's structure, without draws and memory."""
    with torch.device("meta"):
        return timm.create_model(name, num_classes=0)


def _refuse(config: EncoderConfig, reason: str, *fields: str) -> None:
    for field in fields:
        value = getattr(config, field)
        if value and value != EncoderConfig.model_fields[field].default:  # False asks for nothing
            got = f"{field}={value!r}"
            raise ValueError(f"encoder.{field}: {config.name} {reason} and cannot take {got}; leave it out")


def _resnet(config: EncoderConfig, sketch: Any, arguments: dict[str, Any], zero_init: ZeroInit) -> Any:
    kwargs: dict[str, Any] = {**arguments, "zero_init_last": False}
    plain = config.stem == "default" and config.width == 1
    if not plain:
        if not isinstance(sketch.conv1, nn.Conv2d):
            _refuse(config, "has a stem of several convolutions", "stem", "width")
        # timm fixes its plain stem at 64 channels, its deep stem at 2 * stem_width: ask for the deep one, so
        # that norm and first stage fit, and put a single convolution in its place.
        stages = STAGES.get(config.name, (64, 128, 256, 512))
        half = [max(1, round(channels * config.width / 2)) for channels in (64, *stages)]
        kwargs |= {"stem_type": "deep", "stem_width": half[0], "channels": tuple(2 * h for h in half[1:])}
    backbone = timm.create_model(config.name, **kwargs)
    if not plain:
        size, stride = (3, 1) if config.stem == "cifar" else (7, 2)
        backbone.conv1 = nn.Conv2d(
            arguments["in_chans"], 2 * half[0], size, stride, padding=size // 2, bias=False
        )
        nn.init.kaiming_normal_(backbone.conv1.weight, mode="fan_out", nonlinearity="relu")
    if config.stem == "cifar":
        backbone.maxpool = nn.Identity()
    if config.sk_ratio is not None:
        _choose_by(backbone, config)
    if config.norm is not None:
        replace_batch_norms(backbone, config.norm)
    if config.zero_init_residual is not None:
        zero_init = "all" if config.zero_init_residual else "none"
    for block in backbone.modules():
        if isinstance(block, _ZERO_INIT_BLOCKS[zero_init]):
            block.zero_init_last()
    return backbone


def _choose_by(backbone: nn.Module, config: EncoderConfig) -> None:
    """Give what chooses between kernels as many channels as the ratio says, drawn as timm draws."""
    kernels = [each for each in backbone.modules() if isinstance(each, selective_kernel.SelectiveKernel)]
    if not kernels:
        _refuse(config, "has no selective kernels", "sk_ratio")
    for kernel in kernels:
        channels = max(_LEAST_SELECTING, int(kernel.out_channels * (config.sk_ratio or 1)))
        kernel.attn = selective_kernel.SelectiveKernelAttn(kernel.out_channels, kernel.num_paths, channels)
        for layer in (kernel.attn.fc_reduce, kernel.attn.fc_select):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
