"""An image as a grid of overlapping patches, each encoded by itself (CPC, arXiv:1807.03748, section 3.2)."""

import torch
import torch.nn.functional as F
from pydantic import BaseModel, Field, PositiveInt
from torch import Tensor, nn

from ..method import Encoder
from .draws import uniform
from .precision import full
from .sequences import Counter

PATCHES, WARPS = 1, 1 << 7  # streams of draws from here on, one a view
_DRAWS = 7  # a patch
_NODES = 4  # on a side of the grid of displacements


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
    shear: float = Field(
        0.0, ge=0, lt=90, description="largest angle in degrees of a shear along x, and of one along y"
    )
    elastic: float = Field(
        0.0,
        ge=0,
        description="pixels: standard deviation of the displacements on a grid of 4 x 4 places, smooth between them",
    )
    warp: float = Field(
        0.2, ge=0, le=1, description="probability that a patch is sheared, and that it is deformed"
    )
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
    if how.shear or how.elastic:
        patches = _warped(patches, how, counter, view)
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


def _warped(patches: Tensor, how: PatchAugmentation, counter: Counter, view: int) -> Tensor:
    """Some are sheared about the middle, some deformed, by one bilinear look-up; beyond the border is the mean colour."""
    places, side = patches.shape[:3], patches.shape[-1]
    draws = 4 + 2 * _NODES**2
    count = places[1] * places[2] * draws
    u = uniform(counter.seed, counter.ids, count, counter.progress, stream=WARPS + view).view(-1, draws)
    shares = u.new_tensor([how.warp * (how.shear > 0), how.warp * (how.elastic > 0)])
    sheared, deformed = (u[:, :2] < shares).T[..., None, None]  # (m, 1, 1) each, m patches
    along_x, along_y = torch.tan(torch.deg2rad(how.shear * (2 * u[:, 2:4] - 1))).T[..., None, None] * sheared
    nodes = torch.special.ndtri(u[:, 4:].clamp(min=2**-53)).view(-1, 2, _NODES, _NODES)
    right, down = F.interpolate(nodes, (side, side), mode="bicubic", align_corners=True).unbind(
        1
    )  # (m, P, P)
    place = torch.arange(side, dtype=u.dtype, device=u.device) - (side - 1) / 2  # from the middle
    x = place + how.elastic * right * deformed
    y = place[:, None] + how.elastic * down * deformed
    y = y + along_y * x
    x = x + along_x * y
    pixels = full(patches.flatten(0, 2))
    source = torch.stack([x, y], dim=-1).to(pixels.dtype) / (side / 2)
    seen = F.grid_sample(pixels, source, align_corners=False).unflatten(0, places)
    touched = _over((sheared | deformed).view(places))
    return torch.where(touched, seen.to(patches.dtype), patches)


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
