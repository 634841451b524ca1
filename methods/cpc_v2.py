"""CPC v2: patches of an image predict those beyond them in four directions, each patch augmented by itself.

Hénaff et al. 2019, arXiv:1905.09272, section 3.1 and the listing in its appendix. With codes z = encoder(patch), a target
map y = V z, and for each direction a PixelCNN context c over the rows (columns) passed so far:
    f_k(i, j) = s * y_j.W_k c_i
    l = sum over directions of mean_k mean_i -log( exp f_k(i, i + k) / sum_j exp f_k(i, j) ),   candidates: all of the batch.
As in the listing s is 0.1, the two nearest rows, which overlap, are not predicted, and a single distance is. A direction
has its own context and W_k; V is shared. V and W_k have no biases here. Layer norm in the encoder: batch norm is refused.

Tune first: the patches' augmentation (drop_colours, shift), grid and skipped: predicted patches should not overlap.

Shape suffixes: b = images on this rank, v = views, g = rows or columns of the grid, r = directions, l = lanes, t = steps,
k = distances, d = target_dim.
"""

from typing import ClassVar, Literal, NamedTuple, get_args

import torch
from pydantic import BaseModel, Field, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor, nn

from .method import About, Batch, DataFacts, Encoder, Method, Needs, at_least
from .parts.backbones import ZeroInit
from .parts.observations import Observations, needs_of
from .parts.patches import GridEncoder, PatchAugmentation
from .parts.sequences import POLICY, Counter, Masked, Policy, Rules, check_length, score

Direction = Literal["down", "up", "right", "left"]


class CPCV2Config(BaseModel, frozen=True, extra="forbid", strict=True):
    zero_init_residual: ClassVar[ZeroInit] = "none"

    name: Literal["cpc_v2"] = "cpc_v2"
    directions: tuple[Direction, ...] = Field(
        get_args(Direction), min_length=1, description="Which way patches are predicted."
    )
    context_dim: PositiveInt = Field(256, description="Hidden width of the contexts.")
    target_dim: PositiveInt = Field(64, description="Width of what is predicted.")
    scale: PositiveFloat = Field(0.1, description="s, on the predictions.")
    steps: PositiveInt = Field(1, description="K, how many distances are predicted.")
    skipped: NonNegativeInt = Field(2, description="The nearest distances that are not predicted.")
    negatives: Policy = Field("all", description=POLICY)
    num_negatives: PositiveInt | None = Field(
        None, description="Drawn for each prediction, uniformly; default: every candidate."
    )
    patches: PatchAugmentation = Field(
        PatchAugmentation(), description="What happens to each patch by itself."
    )


class Codes(NamedTuple):
    y_bvggd: Tensor  # targets by view, row and column
    p_brltkd: Tensor  # predictions of each direction, lanes of all views, as if it were down


class Losses(NamedTuple):
    loss: Tensor
    accuracy: Tensor  # share of predictions that are nearest to their own target, mean of directions
    information: Tensor  # log of the number of candidates - loss, nats, mean of directions


class CPCV2(Method[CPCV2Config, Codes, tuple[()]]):
    """Encoder of patches, the target map, and a context with its matrices for each direction."""

    about: ClassVar[About] = About(2019, "predictive contrast", "1 or more views as patches")
    needs: ClassVar[Needs] = Needs(at_least(1))

    seed: Tensor  # 0-d int64, of all draws

    def __init__(self, config: CPCV2Config, encoder: Encoder, data: DataFacts) -> None:
        super().__init__(config, encoder, data)
        needs_of(encoder, frames=False)
        if not isinstance(encoder, GridEncoder):
            raise ValueError("encoder: cpc_v2 takes patches of images: encoder.grid={patch: 8, stride: 4}")
        self.observations = Observations(0, config.patches, data)
        self.rules = Rules(config.skipped + 1, config.negatives, config.num_negatives)
        d = encoder.dim
        self.targets_of = nn.Linear(d, config.target_dim, bias=False)
        self.contexts = nn.ModuleList(Masked(d, config.context_dim) for _ in config.directions)
        self.predictions = nn.ModuleList(
            nn.Linear(d, config.steps * config.target_dim, bias=False) for _ in config.directions
        )
        self.register_buffer("seed", torch.randint(2**62, ()))

    def forward(self, batch: Batch) -> Codes:
        """Targets of all patches, and what each direction expects."""
        z_bvltd = self.observations.codes(self.encoder, batch, self._counter(batch))
        check_length(z_bvltd.shape[3], self.rules, self.config.steps)
        expected = []
        for direction, context, predictions in zip(self.config.directions, self.contexts, self.predictions):
            c_bvltd = context(turned(z_bvltd, direction).flatten(0, 1)).unflatten(0, z_bvltd.shape[:2])
            expected.append(self.config.scale * predictions(c_bvltd).unflatten(-1, (self.config.steps, -1)))
        p_brltkd = torch.stack([p_bvltkd.flatten(1, 2) for p_bvltkd in expected], dim=1)
        return Codes(self.targets_of(z_bvltd).transpose(2, 3), p_brltkd)

    def criterion(self, out: Codes, targets: tuple[()], batch: Batch) -> Losses:
        """Sum over directions; collective."""
        y_bvltd, counter = out.y_bvggd.transpose(2, 3), self._counter(batch)
        scored = [
            score(turned(y_bvltd, direction).flatten(1, 2), out.p_brltkd[:, r], None, self.rules, counter)
            for r, direction in enumerate(self.config.directions)
        ]
        loss, accuracy, information = (torch.stack(each) for each in zip(*scored))
        return Losses(loss.sum(), accuracy.detach().mean(), information.detach().mean())

    def _counter(self, batch: Batch) -> Counter:
        return Counter(self.seed, batch.ids, batch.progress)


def turned(x_bvltd: Tensor, direction: Direction) -> Tensor:
    """Columns of rows, top down -> lanes of steps that go in this direction."""
    if direction in ("right", "left"):
        x_bvltd = x_bvltd.transpose(2, 3)
    return x_bvltd.flip(3) if direction in ("up", "left") else x_bvltd
