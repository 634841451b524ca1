"""CPC: predict, from a summary of a sequence so far, its codes some steps ahead, told from other codes.

van den Oord et al. 2018, arXiv:1807.03748, eq. 2-4. With codes z_t = encoder(x_t), the summary c_t = context(z_1 ... z_t)
and a matrix W_k for each distance k:
    f_k(t, j) = z_j.W_k c_t
    l = -mean_k mean_t log( exp f_k(t, t + k) / sum_j exp f_k(t, j) ),   over all t with t + k <= T, of all samples;
    I(z_{t+k}; c_t) >= log(number of candidates j) - l.
No normalisation and no temperature. Candidates are the codes of the global batch, those of the same sequence too. There is
no official code. A sequence is whatever a small encoder makes codes of:
    an image        encoder: {name: resnet18, norm: layer, grid: {patch: 8, stride: 4}}     patches, rows predicted top down
    a sound         encoder: {name: waves}        .wav, .flac, .ogg
    a text          encoder: {name: bytes}        .txt
    vectors         encoder: {name: vectors, inputs: 7}       .npy (T, 7), observations of an agent for example
    frames          encoder: {name: resnet18, norm: layer}, method: {frames: true}       .npy (T, H, W, 3) of uint8
Batch norm would tell a code of those to come: it is refused.

Tune first: steps and the encoder's strides, which say how far ahead is predicted; learning rate; then negatives.

Shape suffixes: b = samples on this rank, v = views, l = lanes (columns of an image, else 1), t = time steps (rows),
k = distances, d = the encoder's width.
"""

from typing import ClassVar, Literal, NamedTuple

import torch
from pydantic import BaseModel, Field, NonNegativeInt, PositiveInt
from torch import Tensor, nn

from .method import About, Batch, DataFacts, Encoder, Method, Needs, at_least
from .parts.backbones import ZeroInit
from .parts.observations import Observations, needs_of
from .parts.patches import PatchAugmentation
from .parts.sequences import POLICY, Counter, Masked, Policy, Recurrent, Rules, check_length, score


class CPCConfig(BaseModel, frozen=True, extra="forbid", strict=True):
    zero_init_residual: ClassVar[ZeroInit] = "none"

    name: Literal["cpc"] = "cpc"
    context: Literal["gru", "masked"] = Field(
        "gru",
        description="What sums up the past: a GRU along each lane; or convolutions over the steps so far and the lanes "
        "beside (a PixelCNN, for images).",
    )
    context_dim: PositiveInt = Field(
        256, description="Width of the summary (gru), or of hidden layers (masked)."
    )
    steps: PositiveInt = Field(12, description="K, how many distances are predicted; 5 for images.")
    skipped: NonNegativeInt = Field(0, description="The nearest distances that are not predicted.")
    negatives: Policy = Field("all", description=POLICY)
    num_negatives: PositiveInt | None = Field(
        None, description="Drawn for each prediction, uniformly; default: every candidate."
    )
    window: PositiveInt = Field(
        20480,
        description="Samples of a sound, bytes, or vectors that are shown; what is longer is cut where the draw falls.",
    )
    frames: bool = Field(False, description="The sequence is the frames of an array (T, H, W, 3).")
    patches: PatchAugmentation = Field(
        PatchAugmentation(), description="What happens to each patch of an image by itself."
    )


class Codes(NamedTuple):
    z_bltd: Tensor
    p_bltkd: Tensor  # W_k c_t


class Losses(NamedTuple):
    loss: Tensor
    accuracy: Tensor  # share of predictions that are nearest to their own code
    information: (
        Tensor  # log of the number of candidates - loss, nats: what a summary tells at least of codes ahead
    )


class CPC(Method[CPCConfig, Codes, tuple[()]]):
    """Encoder, context, and the matrices W_k."""

    about: ClassVar[About] = About(
        2018, "predictive contrast", "1 or more views as patches; or sounds, texts, vectors, frames"
    )
    needs: ClassVar[Needs] = Needs(at_least(1))  # of images

    seed: Tensor  # 0-d int64, of all draws

    def __init__(self, config: CPCConfig, encoder: Encoder, data: DataFacts) -> None:
        super().__init__(config, encoder, data)
        self.needs = needs_of(encoder, frames=config.frames)  # type: ignore[misc]  # as the recipe's encoder has it
        self.observations = Observations(config.window, config.patches, data)
        self.rules = Rules(config.skipped + 1, config.negatives, config.num_negatives)
        d, gru = encoder.dim, config.context == "gru"
        self.context = (Recurrent if gru else Masked)(d, config.context_dim)
        self.predictions = nn.Linear(config.context_dim if gru else d, config.steps * d, bias=False)
        self.register_buffer("seed", torch.randint(2**62, ()))

    def forward(self, batch: Batch) -> Codes:
        """Codes, and what is expected of them."""
        z_bvltd = self.observations.codes(self.encoder, batch, self._counter(batch))
        check_length(z_bvltd.shape[3], self.rules, self.config.steps)
        p_bvltkd = self.predictions(self.summary(z_bvltd)).unflatten(-1, (self.config.steps, -1))
        return Codes(z_bvltd.flatten(1, 2), p_bvltkd.flatten(1, 2))

    def summary(self, z_bvltd: Tensor) -> Tensor:
        """c of each step, the codes up to it summed up: (b, v, l, t, context)."""
        c: Tensor = self.context(z_bvltd.flatten(0, 1))
        return c.unflatten(0, z_bvltd.shape[:2])

    def criterion(self, out: Codes, targets: tuple[()], batch: Batch) -> Losses:
        """Mean over all predictions (eq. 4); collective."""
        steps_b = self.observations.steps(self.encoder, batch)
        scored = score(out.z_bltd, out.p_bltkd, steps_b, self.rules, self._counter(batch))
        return Losses(scored.loss, scored.accuracy.detach(), scored.information.detach())

    def _counter(self, batch: Batch) -> Counter:
        return Counter(self.seed, batch.ids, batch.progress)
