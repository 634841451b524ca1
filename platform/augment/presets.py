"""Published augmentations as data: what a recipe's `views: [{recipe: simclr}]` stands for.

Jitter strengths b, c, s mean a factor drawn from [max(0, 1 - b), 1 + b], hue .1 means +-36 degrees; the rest
are probabilities. A view is cropped, flipped, turned, jittered (sub-operations in random order), made gray, blurred,
solarised, reduced to edges, made noisy and cut out, in this order; RandAugment comes after the blur, and then gray after it.
"""

from typing import Annotated, NamedTuple, Self

from pydantic import BaseModel, Field, NonNegativeInt, PositiveInt, model_validator

from ..errors import nearest

Probability = Annotated[float, Field(ge=0, le=1)]
Strength = Annotated[float, Field(ge=0)]


class Augmentation(NamedTuple):
    """How one view is drawn. Probabilities per sample are called by the name of their operation."""

    crop_scale: tuple[float, float] = (0.08, 1.0)  # area of the crop / area of the image
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)  # width / height of the crop, log-uniform
    flip: float = 0.5
    jitter: float = 0.8
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    gray: float = 0.0
    blur: float = 0.0
    blur_sigma: tuple[float, float] = (0.1, 2.0)  # pixels
    solarize: float = 0.0
    solarize_threshold: int = 128  # of 255
    rotate: float = 0.0
    sobel: float = 0.0
    noise: float = 0.0
    noise_sigma: tuple[float, float] = (0.1, 0.1)  # 1 = from black to white
    cutout: float = 0.0
    cutout_size: float = 0.5  # side of the square / side of the view
    rand_augment: int = 0  # operations, one after another
    rand_augment_magnitude: float = 10.0  # of 10
    rand_augment_std: float = 0.5  # of the magnitude

    @staticmethod
    def blur_kernel(size: int) -> int:
        """Taps a side of the blur of a (size, size) view: size // 10, made odd (SimCLR: 23 at 224)."""
        return (size // 10) | 1


def _colour(b: float, c: float, s: float, h: float) -> Augmentation:
    return Augmentation(brightness=b, contrast=c, saturation=s, hue=h, gray=0.2)


_STRONG, _WEAK, _BYOL = _colour(0.8, 0.8, 0.8, 0.2), _colour(0.4, 0.4, 0.4, 0.1), _colour(0.4, 0.4, 0.2, 0.1)

# One entry serves every view; two are for view 0 and view 1 of an asymmetric pair.
PRESETS: dict[str, tuple[Augmentation, ...]] = {
    # Chen et al. 2020, arXiv:2002.05709, appendix A, strength 1
    "simclr": (_STRONG._replace(blur=0.5),),
    # Wu et al. 2018, arXiv:1805.01978, official code, where colours are dropped before the jitter; InvaSpread, MoCo v1
    "instdisc": (_colour(0.4, 0.4, 0.4, 0.4)._replace(crop_scale=(0.2, 1.0), jitter=1.0),),
    # Chen et al. 2020, arXiv:2003.04297, section 3
    "mocov2": (_WEAK._replace(crop_scale=(0.2, 1.0), blur=0.5),),
    # Tian et al. 2020, arXiv:2005.10243, section 4.2, official code
    "infomin": (_STRONG._replace(crop_scale=(0.2, 1.0), blur=0.5, rand_augment=2),),
    # Grill et al. 2020, arXiv:2006.07733, table 6; Barlow Twins and VICReg use it too
    "byol": (_BYOL._replace(blur=1.0), _BYOL._replace(blur=0.1, solarize=0.2)),
    # 32 px: SimCLR's appendix B.9 (strength 0.5, no blur), and its counterpart for BYOL
    "simclr-cifar": (_WEAK,),
    "mocov2-cifar": (_WEAK,),
    "byol-cifar": (_BYOL, _BYOL._replace(solarize=0.2)),
}


class ViewSpec(BaseModel, frozen=True, extra="forbid", strict=True):
    """`count` views of one size; a field given here wins over the preset's (None: take the preset's)."""

    count: PositiveInt = Field(1, description="number of views drawn with these settings")
    size: PositiveInt = Field(description="height and width of the view in pixels")
    recipe: str | None = Field(None, description=f"preset: {', '.join(PRESETS)}; none: crop and flip only")
    crop_scale: tuple[float, float] | None = Field(
        None, description="smallest and largest crop area, as a share of the image"
    )
    crop_ratio: tuple[float, float] | None = Field(
        None, description="smallest and largest width / height of the crop"
    )
    flip: Probability | None = Field(None, description="probability of a horizontal flip")
    jitter: Probability | None = Field(None, description="probability of colour jitter")
    brightness: Strength | None = Field(None, description="jitter: factor from [max(0, 1 - x), 1 + x]")
    contrast: Strength | None = Field(None, description="jitter: factor from [max(0, 1 - x), 1 + x]")
    saturation: Strength | None = Field(None, description="jitter: factor from [max(0, 1 - x), 1 + x]")
    hue: Annotated[float, Field(ge=0, le=0.5)] | None = Field(
        None, description="jitter: turn of the hue from [-x, x], 1 = the whole circle"
    )
    gray: Probability | None = Field(None, description="probability of dropping the colours")
    blur: Probability | None = Field(None, description="probability of a Gaussian blur, kernel size/10 odd")
    blur_sigma: tuple[float, float] | None = Field(
        None, description="smallest and largest sigma of the blur in pixels"
    )
    solarize: Probability | None = Field(None, description="probability of inverting the bright pixels")
    solarize_threshold: Annotated[int, Field(ge=0, le=256)] | None = Field(
        None, description="first level of 255 that is inverted"
    )
    rotate: Probability | None = Field(None, description="probability of a turn by 90, 180 or 270 degrees")
    sobel: Probability | None = Field(None, description="probability of edges (Sobel) instead of the picture")
    noise: Probability | None = Field(None, description="probability of Gaussian noise")
    noise_sigma: tuple[float, float] | None = Field(
        None, description="smallest and largest sigma of the noise, 1 = from black to white"
    )
    cutout: Probability | None = Field(
        None,
        description="probability of a square that is filled with the mean colour; it may cross the border",
    )
    cutout_size: Annotated[float, Field(gt=0, le=1)] | None = Field(
        None, description="side of the square, as a share of the view's"
    )
    rand_augment: NonNegativeInt | None = Field(
        None, description="RandAugment: operations drawn for a view, each done with probability 1/2"
    )
    rand_augment_magnitude: Annotated[float, Field(ge=0, le=10)] | None = Field(
        None, description="RandAugment: mean level of an operation, 0 to 10"
    )
    rand_augment_std: Strength | None = Field(None, description="RandAugment: sigma of the level")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.recipe is not None and self.recipe not in PRESETS:
            raise ValueError(
                f"recipe {self.recipe!r} is not a preset of views ({nearest(self.recipe, PRESETS)})"
            )
        if self.recipe is not None and len(PRESETS[self.recipe]) not in (1, self.count):
            raise ValueError(
                f"recipe {self.recipe!r} is a pair of different views: count must be 2, got {self.count}"
            )
        for name in ("crop_scale", "crop_ratio", "blur_sigma", "noise_sigma"):
            low, high = getattr(self, name) or (1, 1)
            if not 0 < low <= high or (name == "crop_scale" and high > 1):
                limit = " <= 1" if name == "crop_scale" else ""
                raise ValueError(f"{name} must be 0 < smallest <= largest{limit}, got [{low}, {high}]")
        return self

    def augmentations(self) -> list[Augmentation]:
        """The settings of each of the `count` views, preset and explicit fields merged."""
        base = PRESETS[self.recipe] if self.recipe else (Augmentation(),)
        given = {name: getattr(self, name) for name in Augmentation._fields}
        given = {name: value for name, value in given.items() if value is not None}
        return [base[k % len(base)]._replace(**given) for k in range(self.count)]
