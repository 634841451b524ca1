"""Where a sequence comes from: an image, a sound, a text, vectors or frames, each as codes in lanes of one length.

Shape suffixes: b = samples, v = views (1 but for images), l = lanes, t = steps, d = the encoder's width.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..method import Batch, DataFacts, Encoder, Needs, at_least
from .draws import uniform
from .patches import GridEncoder, PatchAugmentation, augmented
from .sequences import Counter
from .signals import SIGNALS, Signal

WINDOWS = 0  # stream of draws
FRAMES = "array"


def needs_of(encoder: Encoder, *, frames: bool) -> Needs:
    """What a batch must hold for it. Raises ValueError: no sequence, or one whose codes would know of each other."""
    for name, module in encoder.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            raise ValueError(
                f"encoder.norm: batch norm ({name}) tells each code of the others, so that nothing is left to predict; "
                "use encoder.norm=layer"
            )
    if isinstance(encoder, Signal):
        return Needs(None, (encoder.field,))
    if frames:
        return Needs(None, (FRAMES,))
    if isinstance(encoder, GridEncoder):
        return Needs(at_least(1))
    raise ValueError(
        "encoder: a sequence is an image's patches (encoder.grid={patch: 8, stride: 4}), a signal "
        f"(encoder.name={'|'.join(SIGNALS)}) or frames (method.frames=true); this encoder takes whole images"
    )


class Observations(NamedTuple):
    """window: samples of a signal that are shown at most, from a drawn start on.  patches: what happens to each patch."""

    window: int
    patches: PatchAugmentation
    data: DataFacts

    def codes(self, encoder: Encoder, batch: Batch, counter: Counter) -> Tensor:
        """(b, v, l, t, d): of an image a lane is a column of its patches, top down."""
        if isinstance(encoder, GridEncoder):
            grids = [
                encoder.codes(augmented(encoder.cut(view), self.patches, counter, number))
                for number, view in enumerate(batch.views)
            ]
            return torch.stack(grids, dim=1).permute(0, 1, 4, 3, 2)
        if isinstance(encoder, Signal):
            codes = encoder.features(self._windows(encoder.field, batch, counter))
        else:
            frames = batch.fields[FRAMES]
            if frames.dim() != 5 or frames.dtype != torch.uint8:
                raise ValueError(
                    f"frames are arrays (T, H, W, 3) of uint8, got {tuple(frames.shape[1:])} of {frames.dtype}"
                )
            weight = next(encoder.parameters())
            mean, std = weight.new_tensor(self.data.mean), weight.new_tensor(self.data.std)
            images = ((frames.to(weight.dtype) / 255 - mean) / std).flatten(0, 1).permute(0, 3, 1, 2)
            codes = encoder(images).unflatten(0, frames.shape[:2])
        return codes[:, None, None]

    def steps(self, encoder: Encoder, batch: Batch) -> Tensor | None:
        """(b,) int64 how many codes of each sample are real; None: all."""
        if not isinstance(encoder, Signal) or f"{encoder.field}.length" not in batch.fields:
            return None
        return encoder.steps(batch.fields[f"{encoder.field}.length"].clamp(max=self.window))

    def _windows(self, field: str, batch: Batch, counter: Counter) -> Tensor:
        """(b, window, ...): what is longer is cut, what is shorter padded, so that all ranks have one shape.

        Arrays have one shape: where they are shorter, they stay so.
        """
        signals, lengths = batch.fields[field], batch.fields.get(f"{field}.length")
        width = min(self.window, signals.shape[1]) if lengths is None else self.window
        if lengths is None:
            lengths = torch.full_like(counter.ids, signals.shape[1])
        spare = (lengths - width).clamp(min=0)
        u = uniform(counter.seed, counter.ids, 1, counter.progress, stream=WINDOWS)[:, 0]
        place = (u * (spare + 1)).long()[:, None] + torch.arange(width, device=signals.device)
        inside = place < lengths[:, None]
        rows = torch.arange(len(signals), device=signals.device)[:, None]
        shown = signals[rows, place.clamp(max=signals.shape[1] - 1)]
        return shown * inside.view(*inside.shape, *[1] * (shown.dim() - 2)).to(shown.dtype)
