"""timm's vision transformers as joint-embedding methods use them: fixed positions, frozen patches."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from ..torchvision_shim import timm

VisionTransformer = timm.models.vision_transformer.VisionTransformer


def fix_positions(network: Any) -> None:
    """Positions by sine and cosine in the place of learned ones; the class token has none."""
    rows, columns = network.patch_embed.grid_size
    table = sincos(rows, columns, network.embed_dim)
    prefix = table.new_zeros(network.pos_embed.shape[1] - len(table), network.embed_dim)
    network.pos_embed.data.copy_(torch.cat([prefix, table]))
    network.pos_embed.requires_grad_(False)


def freeze_patches(network: Any) -> None:
    """The projection of patches stays as initialised (MoCo v3, arXiv:2104.02057, section 4.2)."""
    network.patch_embed.proj.requires_grad_(False)


def spread_patches(network: Any) -> None:
    """The projection of patches as MoCo v3's code draws it: uniform, by the fans of the linear layer that it is."""
    proj = network.patch_embed.proj
    limit = math.sqrt(6 / (proj.weight[0].numel() + len(proj.weight)))
    nn.init.uniform_(proj.weight, -limit, limit)
    nn.init.zeros_(proj.bias)


def sincos(rows: int, columns: int, dim: int) -> Tensor:
    """Fixed positions of a grid, row-major: (rows * columns, dim) fp32, dim a multiple of 4.

    MoCo v3's code: sine and cosine of the row, then of the column, at dim / 4 frequencies from 1 down to nearly
    1 / 10000. Raises ValueError: dim is no multiple of 4.
    """
    if dim % 4:
        raise ValueError(f"encoder.positions=sincos: the width must be a multiple of 4, got {dim}")
    frequencies = 10000.0 ** -(torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    row, column = (
        place.flatten()[:, None] * frequencies
        for place in torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    )
    return torch.cat([row.sin(), row.cos(), column.sin(), column.cos()], dim=1).float()
