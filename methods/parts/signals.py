"""Encoders of what is no image: convolutions over a wave, a text or a series of vectors."""

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..method import Encoder

SignalName = Literal["waves", "bytes", "vectors"]
CHANNELS, SYMBOLS = 512, 256
QUIET = (
    1e-8  # variance below which a norm gives up: far below that of a voice, so that loudness does not tell
)


class Kind(NamedTuple):
    """field: of the batch that it encodes.  strides: where a recipe gives none."""

    field: str
    strides: tuple[int, ...]


# waves: van den Oord et al. 2018, arXiv:1807.03748, section 3.1: a code for each 160 samples
SIGNALS: dict[SignalName, Kind] = {
    "waves": Kind("audio", (5, 4, 2, 2, 2)),
    "bytes": Kind("text", (1, 2, 2)),
    "vectors": Kind("array", (1, 1)),
}


class Signal(Encoder):
    """A convolution and a ReLU for each stride, over twice its length (1: over a single step), without padding.

    So a code sees what lies below it and nothing else. Norms are of the channels of one step: others would carry
    news of later steps into earlier codes. Where there are norms, convolutions have no offsets: codes do not depend on
    how loud a wave is.
    """

    def __init__(
        self, name: SignalName, *, channels: int, strides: tuple[int, ...], inputs: int, normed: bool
    ) -> None:
        """inputs: numbers in a vector; waves have one, bytes are embedded."""
        super().__init__()
        self.name, self.field, self.dim, self.strides = name, SIGNALS[name].field, channels, strides
        width = {"waves": 1, "bytes": channels, "vectors": inputs}[name]
        self.embedding = nn.Embedding(SYMBOLS, width) if name == "bytes" else None
        widths = [width, *[channels] * len(strides)]
        self.layers = nn.ModuleList(
            nn.Conv1d(below, channels, _kernel(stride), stride, bias=not normed)
            for below, stride in zip(widths, strides)
        )
        self.norms = nn.ModuleList(
            nn.LayerNorm(channels, QUIET) if normed else nn.Identity() for _ in range(len(strides))
        )

    def forward(self, signals: Tensor) -> Tensor:
        """Waves or bytes (n, S), vectors (n, S, inputs), none of them padded -> (n, dim): the mean of the codes."""
        return self.features(signals).mean(dim=1)

    def features(self, signals: Tensor) -> Tensor:
        """As `forward` -> the codes (n, T, dim), T = steps(S)."""
        x = self._channels(signals)
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = F.relu(norm(layer(x).transpose(1, 2))).transpose(1, 2)
        return x.transpose(1, 2)

    def steps(self, lengths: Tensor) -> Tensor:
        """How many codes lie wholly within so many samples, element by element."""
        for stride in self.strides:
            lengths = torch.div(lengths - _kernel(stride), stride, rounding_mode="floor") + 1
        return lengths.clamp(min=0)

    def _channels(self, signals: Tensor) -> Tensor:
        """(n, channels, S) in the precision of the weights."""
        if self.embedding is not None:
            return self.embedding(signals.long()).transpose(1, 2)
        x = signals.to(next(self.layers.parameters()).dtype)
        return x[:, None] if self.name == "waves" else x.transpose(1, 2)


def _kernel(stride: int) -> int:
    return 2 * stride if stride > 1 else 1
