"""The encoder of CPC v2: a ResNet-101 without its last stage, whose third has 46 blocks of 512 channels, 4,096 wide.

Hénaff et al. 2019, arXiv:1905.09272, section 3.1; 161 layers with the classifier. Blocks here norm after their convolutions,
as all ResNets of timm. Whoever imports this file finds `resnet161` among timm's models.
"""

from typing import Any

from ..torchvision_shim import timm

resnet = timm.models.resnet

CHANNELS = (64, 128, 512, 512)  # of the 3 x 3 convolutions in a stage; the fourth has no blocks
default_cfgs: dict[str, dict[str, Any]] = {"resnet161": {}}  # timm looks here for weights


class Wide(resnet.Bottleneck):
    expansion = 8


@timm.models.register_model
def resnet161(pretrained: bool = False, **kwargs: Any) -> Any:
    """(n, 3, H, W) -> (n, 4096) without a classifier; the grid of features has 1/16 of the image's side."""
    of_stages: dict[str, Any] = {
        "block": (resnet.Bottleneck, resnet.Bottleneck, Wide, Wide),
        "layers": (3, 4, 46, 0),
        "channels": CHANNELS,
        "output_stride": 16,
    }
    return timm.models.build_model_with_cfg(resnet.ResNet, "resnet161", pretrained, **(of_stages | kwargs))
