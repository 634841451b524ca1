"""An image as a grid of overlapping patches, each encoded by itself (CPC, arXiv:1807.03748, section 3.2)."""

import torch
from pydantic import BaseModel, Field, PositiveInt
from torch import Tensor, nn

from ..method import Encoder
from .draws import uniform
from .sequences import Counter

PATCHES = 1  # stream of draws, one a view
_DRAWS = 7  # a patch


class GridConfig(BaseModel, frozen=True, extra="forbid", strict=True):
    patch: PositiveInt = Field(description="side of a patch in pixels")
    stride: PositiveInt = Field(
        description="pixels from one patch to the next; less than patch: they overlap"
    )


class GridEncoder(Encoder):
    """Image -> mean over its patches of what the backbone makes of each; `features` gives the grid."""

    def __init__(self, backbone: nn.Module, dim: int, grid: GridConfig) -> None:
        super().__init__()
        self.backbone, self.dim, self.grid = backbone, dim, grid

    def forward(self, images: Tensor) -> Tensor:
        return self.pool(self.features(images))

    def features(self, images: Tensor) -> Tensor:
        """(n, 3, S, S) -> (n, dim, G, G)."""
        return self.codes(self.cut(images))

    def pool(self, features: Tensor) -> Tensor:
        return features.mean(dim=(2, 3))

    def cut(self, images: Tensor) -> Tensor:
        """(n, 3, S, S) -> the patches (n, G, G, 3, P, P), by row and column; G = (S - P) // stride + 1."""
        patch, stride = self.grid.patch, self.grid.stride
        if images.shape[-1] < patch:
            raise ValueError(f"an image of {images.shape[-1]} pixels holds no patch of {patch}")
        tiles = images.unfold(2, patch, stride).unfold(3, patch, stride)  # (n, 3, G, G, P, P)
        return tiles.permute(0, 2, 3, 1, 4, 5)

    def codes(self, patches: Tensor) -> Tensor:
        """(n, G, G, 3, P, P) -> (n, dim, G, G)."""
        h: Tensor = self.backbone(patches.flatten(0, 2))
        return h.unflatten(0, patches.shape[:3]).permute(0, 3, 1, 2)


class PatchAugmentation(BaseModel, frozen=True, extra="forbid", strict=True):
    shift: int = Field(
        0, ge=0, description="pixels: a crop that is so much smaller, padded back with the mean colour"
    )
    flip: float = Field(0.0, ge=0, le=1, description="probability of a mirrored patch")
    drop_colours: float = Field(0.0, ge=0, le=1, description="probability that one colour of three is kept")
    brightness: float = Field(0.0, ge=0, description="largest change, in standard deviations of the pixels")
    contrast: float = Field(
        0.0, ge=0, lt=1, description="largest change of the factor on a patch around its mean"
    )


def augmented(patches: Tensor, how: PatchAugmentation, counter: Counter, view: int = 0) -> Tensor:
    """Each of the patches (n, G, G, 3, P, P), normalised by the pixels' statistics, drawn by itself.

    What is drawn follows from sample, view, progress and place in the grid. Raises ValueError: a patch is no larger than
    the shift.
    """
    n, rows, columns = patches.shape[:3]
    u = uniform(counter.seed, counter.ids, rows * columns * _DRAWS, counter.progress, stream=PATCHES + view)
    top, left, flip, drop, colour, shade, factor = u.view(n, rows, columns, _DRAWS).unbind(-1)
    if how.shift:
        patches = _shifted(patches, how.shift, top, left)
    patches = torch.where(_over(flip < how.flip), patches.flip(-1), patches)
    kept = (colour * 3).long()[..., None] == torch.arange(3, device=patches.device)
    patches = patches * (kept | (drop >= how.drop_colours)[..., None])[..., None, None]
    if not (how.contrast or how.brightness):
        return patches
    mean = patches.mean(dim=(-3, -2, -1), keepdim=True)
    factors = _over(1 + how.contrast * (2 * factor - 1)).to(patches.dtype)
    shades = _over(how.brightness * (2 * shade - 1)).to(patches.dtype)
    return (patches - mean) * factors + mean + shades


def _shifted(patches: Tensor, shift: int, top: Tensor, left: Tensor) -> Tensor:
    """A crop of P - shift pixels in the middle of zeros; top, left: (n, G, G), uniform."""
    side = patches.shape[-1]
    if side <= shift:
        raise ValueError(f"a patch of {side} pixels cannot be cropped by {shift}")
    place = torch.arange(side, device=patches.device) - shift // 2  # in the crop
    inside = (place >= 0) & (place < side - shift)
    for dim, start in ((-2, top), (-1, left)):
        source = ((start * (shift + 1)).long()[..., None] + place).clamp(0, side - 1)  # (n, G, G, P)
        index = source[..., None, :, None] if dim == -2 else source[..., None, None, :]
        patches = patches.gather(dim, index.expand_as(patches))
    return patches * (inside[:, None] & inside)


def _over(x: Tensor) -> Tensor:
    """(n, G, G) -> (n, G, G, 1, 1, 1)."""
    return x[..., None, None, None]
