"""Small methods in float64 for tests: an encoder without norms, heads of a few units."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from vergence.methods import collectives
from vergence.methods.catalog import METHODS
from vergence.methods.method import Batch, DataFacts, Encoder, Sweep
from vergence.methods.parts.backbones import TimmEncoder
from vergence.methods.parts.patches import GridConfig, GridEncoder, PatchAugmentation
from vergence.methods.parts.vision_transformer import VisionTransformer, fix_positions

SIDE = 4  # pixels
FACTS = DataFacts(num_samples=100, num_ids=100, epochs=10)
SMALL: dict[str, dict[str, Any]] = {
    "inst_disc": {"embed_dim": 5, "num_negatives": 12, "temperature": 0.5},
    "cmc": {"embed_dim": 5, "num_negatives": 12, "temperature": 0.5},
    "inva_spread": {"embed_dim": 5},
    "cpc_v2": {
        "skipped": 0,
        "steps": 2,
        "context_dim": 5,
        "target_dim": 5,
        "scale": 1.0,
        "patches": PatchAugmentation(
            shear=20, elastic=0.5, warp=0.5, shift=1, flip=0.5, drop_colours=0.5, brightness=0.5, contrast=0.5
        ),
    },
    "cpc": {
        "steps": 2,
        "context_dim": 5,
        "patches": PatchAugmentation(shift=1, flip=0.5, drop_colours=0.5, brightness=0.5, contrast=0.5),
    },
    "mocov1": {"embed_dim": 5, "queue_size": 16, "momentum": 0.9},
    "simclr": {"hidden_dim": 7, "embed_dim": 5},
    "simclrv2": {"hidden_dim": 7, "embed_dim": 5, "memory_size": 16, "momentum": 0.9},
    "mocov2": {"hidden_dim": 7, "embed_dim": 5, "queue_size": 16, "momentum": 0.9},
    "infomin": {"hidden_dim": 16, "embed_dim": 5, "queue_size": 16, "momentum": 0.9},
    "dense_cl": {"hidden_dim": 16, "embed_dim": 5, "queue_size": 16, "momentum": 0.9},
    "adco": {"hidden_dim": 7, "embed_dim": 5, "num_negatives": 16, "momentum": 0.9, "adversary_lr": 0.1},
    "contrastive_clustering": {"hidden_dim": 7, "embed_dim": 5, "clusters": 4},
    "byol": {"hidden_dim": 7, "embed_dim": 5, "momentum": 0.9},
    "simsiam": {"hidden_dim": 7, "embed_dim": 5, "bottleneck_dim": 3},
    "barlow_twins": {"hidden_dim": 7, "embed_dim": 5},
    "swav": {"hidden_dim": 7, "embed_dim": 5, "prototypes": 6, "queue_size": 16, "queue_from": 0.0},
    "deep_cluster": {"clusters": 4, "whitened_dim": 3},
    "deep_cluster_v2": {"hidden_dim": 7, "embed_dim": 5, "clusters": 4},
    "dino": {"hidden_dim": 7, "embed_dim": 5, "outputs": 8, "momentum": 0.9},
    "mocov3": {"hidden_dim": 7, "embed_dim": 5, "momentum": 0.9},
    "vicreg": {
        "hidden_dim": 7,
        "embed_dim": 5,
        "invariance_weight": 0.25,
        "variance_weight": 0.25,
        "covariance_weight": 0.01,
    },
    "shared_transformer": {"embed_dim": 5, "context": 12},
    "clip": {"embed_dim": 5, "text_width": 8, "text_layers": 2, "text_heads": 2, "context": 12},
}


class ToyEncoder(Encoder):
    """(n, 3, S, S) -> (n, dim), each sample on its own; S a multiple of 2.

    Its features are on a grid of 2 x 2: each cell sees the same numbers in another order; the first one is pooled.
    """

    part_dims: tuple[int, ...] = (2, 4)

    def __init__(self, dim: int = 6) -> None:
        super().__init__()
        self.dim = dim
        self.net = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(3 * 4, dim), nn.Tanh())

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images)

    def parts(self, images: Tensor) -> tuple[list[Tensor], Tensor]:
        return list(self.net(images).split(self.part_dims, dim=1)), torch.ones(len(images), 2)

    def features(self, images: Tensor) -> Tensor:
        grid, flat, linear, tanh = self.net
        seen = flat(grid(images))
        cells = [tanh(linear(seen.roll(cell, dims=1))) for cell in range(4)]
        return torch.stack(cells, dim=2).unflatten(2, (2, 2))

    def pool(self, features: Tensor) -> Tensor:
        return features[:, :, 0, 0]


def patch_encoder() -> GridEncoder:
    """Patches of 2 pixels of two_views' images, a grid of 3 x 3."""
    return GridEncoder(ToyEncoder(), 6, GridConfig(patch=2, stride=1))


def small_vit() -> TimmEncoder:
    """For images of SIDE and SIDE / 2 pixels, of two blocks; its positions are fixed: timm's gradient of them is fp32."""
    vit = VisionTransformer(
        img_size=SIDE,
        patch_size=2,
        embed_dim=8,
        depth=2,
        num_heads=2,
        num_classes=0,
        dynamic_img_size=True,
    )
    fix_positions(vit)
    return TimmEncoder(vit, vit.embed_dim)


ENCODERS: dict[str, Callable[[], Encoder]] = {
    "cpc": patch_encoder,
    "cpc_v2": patch_encoder,
    "shared_transformer": small_vit,
}


def without_norms(module: nn.Module) -> nn.Module:
    """Batch norms of the heads replaced by the identity, so that samples meet in `criterion` only."""
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.BatchNorm1d):
                setattr(parent, name, nn.Identity())
    return module


def small_method(name: str, seed: int = 0, unseen: bool = False, **overrides: Any) -> Any:
    """Ready for the first step of an epoch; unseen: nothing is done before it yet."""
    torch.manual_seed(seed)
    config, cls = METHODS[name]
    encoder = ENCODERS.get(name, ToyEncoder)()
    method = cls.build(config(**{**SMALL[name], **overrides}), encoder, FACTS).double()
    if not unseen:
        method.before_epoch(0, sweep_of(method))
    return method


def sweep_of(method: Any, seed: int = 0) -> Sweep:
    """Random representations of all ids of FACTS, each rank its part in two batches."""
    part = slice(collectives.rank(), None, collectives.world_size())
    ids, h = torch.arange(FACTS.num_ids)[part], normal(FACTS.num_ids, method.encoder.dim, seed=seed)[part]
    return lambda: zip(ids.chunk(2), h.chunk(2), strict=True)


def two_views(n: int, seed: int = 0, skew: float = 0.0, small: int = 0) -> Batch:
    """n samples in two views and small ones; with skew mean and spread of a sample grow with its position."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(2 + small, n, 3, SIDE, SIDE, generator=generator, dtype=torch.float64)
    drift = skew * torch.arange(n, dtype=torch.float64).view(1, n, 1, 1, 1) / n
    views = images * (1 + drift) + drift
    return Batch(
        [*views[:2], *views[2:, ..., : SIDE // 2, : SIDE // 2]], torch.arange(n), fields=texts(n, seed)
    )


def texts(n: int, seed: int = 0) -> dict[str, Tensor]:
    """Random texts of 0 to 11 bytes, as a batch has them."""
    generator = torch.Generator().manual_seed(seed)
    text = torch.randint(0, 256, (n, 11), generator=generator, dtype=torch.uint8)
    length = torch.randint(0, 12, (n,), generator=generator)
    return {"text": text, "text.length": length}


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def whole(n: int) -> Batch:
    """The batch that `criterion` gets: ids, no views."""
    return Batch([], torch.arange(n))
