"""Every method by its name in a recipe. Each is built as `cls.build(config, encoder, data)`."""

from pydantic import BaseModel

from .adco import AdCo, AdCoConfig
from .barlow_twins import BarlowTwins, BarlowTwinsConfig
from .byol import BYOL, BYOLConfig
from .clip import CLIP, CLIPConfig
from .cmc import CMC, CMCConfig
from .contrastive_clustering import ContrastiveClustering, ContrastiveClusteringConfig
from .cpc import CPC, CPCConfig
from .cpc_v2 import CPCV2, CPCV2Config
from .deep_cluster import DeepCluster, DeepClusterConfig
from .deep_cluster_v2 import DeepClusterV2, DeepClusterV2Config
from .dense_cl import DenseCL, DenseCLConfig
from .dino import DINO, DINOConfig
from .infomin import InfoMin, InfoMinConfig
from .inst_disc import InstDisc, InstDiscConfig
from .inva_spread import InvaSpread, InvaSpreadConfig
from .method import Method
from .moco_v1 import MoCoV1, MoCoV1Config
from .moco_v2 import MoCoV2, MoCoV2Config
from .moco_v3 import MoCoV3, MoCoV3Config
from .shared_transformer import SharedTransformer, SharedTransformerConfig
from .simclr import SimCLR, SimCLRConfig
from .simclr_v2 import SimCLRV2, SimCLRV2Config
from .simsiam import SimSiam, SimSiamConfig
from .swav import SwAV, SwAVConfig
from .vicreg import VICReg, VICRegConfig

METHODS: dict[str, tuple[type[BaseModel], type[Method]]] = {
    "inst_disc": (InstDiscConfig, InstDisc),
    "inva_spread": (InvaSpreadConfig, InvaSpread),
    "cpc": (CPCConfig, CPC),
    "cpc_v2": (CPCV2Config, CPCV2),
    "cmc": (CMCConfig, CMC),
    "mocov1": (MoCoV1Config, MoCoV1),
    "simclr": (SimCLRConfig, SimCLR),
    "simclrv2": (SimCLRV2Config, SimCLRV2),
    "mocov2": (MoCoV2Config, MoCoV2),
    "infomin": (InfoMinConfig, InfoMin),
    "dense_cl": (DenseCLConfig, DenseCL),
    "adco": (AdCoConfig, AdCo),
    "contrastive_clustering": (ContrastiveClusteringConfig, ContrastiveClustering),
    "byol": (BYOLConfig, BYOL),
    "simsiam": (SimSiamConfig, SimSiam),
    "barlow_twins": (BarlowTwinsConfig, BarlowTwins),
    "swav": (SwAVConfig, SwAV),
    "deep_cluster": (DeepClusterConfig, DeepCluster),
    "deep_cluster_v2": (DeepClusterV2Config, DeepClusterV2),
    "dino": (DINOConfig, DINO),
    "mocov3": (MoCoV3Config, MoCoV3),
    "vicreg": (VICRegConfig, VICReg),
    "clip": (CLIPConfig, CLIP),
    "shared_transformer": (SharedTransformerConfig, SharedTransformer),
}


def check(name: str, config: type[BaseModel], method: type[Method]) -> None:
    """What a line of the catalog must say besides; TypeError names what is missing, and what to write."""
    about = "about: ClassVar[About] = About(YEAR, FAMILY, NEEDS)"
    residual = 'zero_init_residual: ClassVar[ZeroInit] = "all" | "bottleneck" | "none"'
    wanted = {
        about: hasattr(method, "about"),
        residual: hasattr(config, "zero_init_residual"),
        f'name: Literal["{name}"] = "{name}"': "name" in config.model_fields
        and config.model_fields["name"].default == name,
    }
    for line, is_there in wanted.items():
        if not is_there:
            owner = method if line is about else config
            raise TypeError(
                f"methods/catalog.py: {name}: class {owner.__name__} ({owner.__module__}) lacks `{line}`"
            )
    if open_parts := sorted(method.__abstractmethods__):
        raise TypeError(
            f"methods/catalog.py: {name}: class {method.__name__} does not define {', '.join(open_parts)}"
        )


for _name, (_config, _method) in METHODS.items():
    check(_name, _config, _method)
