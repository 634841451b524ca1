"""Maps beside an image: what another sensor, or a person, says of each of its pixels (depth, classes)."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from pydantic import BaseModel, Field, PositiveInt
from torch import Tensor, nn

UNKNOWN = 255  # of a pixel


class MapConfig(BaseModel, frozen=True, extra="forbid", strict=True):
    name: str = Field(pattern=r"^[a-z_]+$", description="of the map, and of its network among the weights")
    classes: PositiveInt | None = Field(
        None, le=UNKNOWN, description="its values are so many classes; default: a quantity from 0 to 254"
    )


class MapNetwork(nn.Module):
    """Four convolutions of stride 2, and the mean over places: (n, channels, S, S) -> (n, dim), each map by itself."""

    def __init__(self, channels: int, dim: int) -> None:
        super().__init__()
        self.dim, widths = dim, (channels, *(max(1, dim // part) for part in (8, 4, 2, 1)))
        self.layers = nn.Sequential(
            *(
                nn.Sequential(nn.Conv2d(below, width, 3, 2, 1, bias=False), nn.GroupNorm(1, width), nn.ReLU())
                for below, width in pairwise(widths)
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = self.layers(x).mean(dim=(2, 3))
        return h


def cropped(maps: Tensor, geometry: Tensor, size: int) -> Tensor:
    """What a view shows of maps as large as the pictures: (n, h, w, k) -> (n, size, size, k), the nearest pixels.

    geometry: (n, 5) as in `Batch`.
    """
    top, left, height, width, flip = geometry.unbind(dim=1)
    place = (torch.arange(size, device=maps.device) + 0.5) / size
    across = torch.where(flip[:, None] > 0, 1 - place, place)
    rows = (top[:, None] + place * height[:, None]).long().clamp(max=maps.shape[1] - 1)
    columns = (left[:, None] + across * width[:, None]).long().clamp(max=maps.shape[2] - 1)
    sample = torch.arange(len(maps), device=maps.device)
    return maps[sample[:, None, None], rows[:, :, None], columns[:, None, :]]


def channels(config: MapConfig) -> int:
    return config.classes or 1


def read(values: Tensor, config: MapConfig, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(n, S, S) uint8 -> (n, channels, S, S): one of classes, or a quantity in [-1, 1], 0 where it is unknown.

    And (n,) whether any pixel is known.
    """
    known = values != UNKNOWN
    if config.classes is None:
        x = (values.to(dtype) / 127 - 1)[:, None]
    else:
        x = (
            F.one_hot(values.long().clamp(max=config.classes - 1), config.classes)
            .permute(0, 3, 1, 2)
            .to(dtype)
        )
    return x * known[:, None], known.flatten(1).any(dim=1)
