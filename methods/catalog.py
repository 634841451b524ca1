"""Every method by its name in a recipe. Each is built as `cls(config, encoder)`."""

from pydantic import BaseModel
from torch import nn

from .barlow_twins import BarlowTwins, BarlowTwinsConfig
from .byol import BYOL, BYOLConfig
from .moco_v2 import MoCoV2, MoCoV2Config
from .simclr import SimCLR, SimCLRConfig

METHODS: dict[str, tuple[type[BaseModel], type[nn.Module]]] = {
    "simclr": (SimCLRConfig, SimCLR),
    "mocov2": (MoCoV2Config, MoCoV2),
    "byol": (BYOLConfig, BYOL),
    "barlow_twins": (BarlowTwinsConfig, BarlowTwins),
}
