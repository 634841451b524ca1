"""Every method by its name in a recipe. Each is built as `cls.build(config, encoder, data)`."""

from pydantic import BaseModel

from .barlow_twins import BarlowTwins, BarlowTwinsConfig
from .byol import BYOL, BYOLConfig
from .dino import DINO, DINOConfig
from .method import Method
from .moco_v2 import MoCoV2, MoCoV2Config
from .moco_v3 import MoCoV3, MoCoV3Config
from .simclr import SimCLR, SimCLRConfig
from .simsiam import SimSiam, SimSiamConfig
from .swav import SwAV, SwAVConfig
from .vicreg import VICReg, VICRegConfig

METHODS: dict[str, tuple[type[BaseModel], type[Method]]] = {
    "simclr": (SimCLRConfig, SimCLR),
    "mocov2": (MoCoV2Config, MoCoV2),
    "byol": (BYOLConfig, BYOL),
    "simsiam": (SimSiamConfig, SimSiam),
    "barlow_twins": (BarlowTwinsConfig, BarlowTwins),
    "swav": (SwAVConfig, SwAV),
    "dino": (DINOConfig, DINO),
    "mocov3": (MoCoV3Config, MoCoV3),
    "vicreg": (VICRegConfig, VICReg),
}
