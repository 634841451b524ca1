"""CLIP: an image finds its text among the texts of the global batch, and a text its image.

Radford et al. 2021, arXiv:2103.00020, figure 3. With unit embeddings I of images and T of texts and a learned scale s:
    L = ( mean_i CE(s I_i . T, i) + mean_i CE(s T_i . I, i) ) / 2,
CE the cross-entropy of a row of logits with its diagonal. s = exp(t) starts at 1 / 0.07 and is kept within [1, 100]; the
official code cuts t after each step, here it is cut in the forward, and its gradient passes: the same at every stage
of ZeRO. With more views each finds the text, and the text each view of full size: means over views. Two images with the
same text are each other's negatives, as in the paper.

Tune first: learning rate, then the batch: it is the number of negatives.

Shape suffixes: b = images on this rank, B = b * world_size, v = views, full-size ones first, d = embed_dim.
"""

import math
from collections.abc import Mapping
from typing import ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import BaseModel, Field, PositiveInt
from torch import Tensor, nn

from . import collectives
from .method import About, Batch, DataFacts, Encoder, Method, Needs, at_least
from .parts.backbones import ZeroInit
from .parts.contrast import info_nce
from .parts.forwarding import embed_views
from .parts.precision import full
from .parts.text import CONTEXT, TEXT, TextTransformer

LARGEST = math.log(100)  # of t


class CLIPConfig(BaseModel, frozen=True, extra="forbid", strict=True):
    zero_init_residual: ClassVar[ZeroInit] = "all"

    name: Literal["clip"] = "clip"
    embed_dim: PositiveInt = Field(512, description="Width of the embedding that images and texts share.")
    text_width: PositiveInt = Field(512, description="Width of the text's transformer.")
    text_layers: PositiveInt = Field(12, description="Number of its blocks.")
    text_heads: PositiveInt = Field(8, description="Attention heads of a block; they divide the width.")
    context: int = Field(256, ge=3, description=CONTEXT)


class Embeddings(NamedTuple):
    z_bvd: Tensor  # of images, not normalised
    t_bd: Tensor  # of their texts, not normalised
    scale_b: Tensor  # s, the same for all


class Losses(NamedTuple):
    loss: Tensor
    accuracy: Tensor  # share of images that find their text ahead of all others; of equal texts none does
    positive_cosine: Tensor
    scale: Tensor


class CLIP(Method[CLIPConfig, Embeddings, tuple[()]]):
    """Encoder of images, transformer of texts, and a linear map of each to the width they share."""

    about: ClassVar[About] = About(2021, "vision-language", "1 or more views; text, or captions of classes")
    needs: ClassVar[Needs] = Needs(at_least(1, small=True), fields=(TEXT,), tokens=True)

    def __init__(self, config: CLIPConfig, encoder: Encoder, data: DataFacts) -> None:
        super().__init__(config, encoder, data)
        self.image_projection = projection(encoder.dim, config.embed_dim)
        self.text = TextTransformer(
            config.text_width, config.text_layers, config.text_heads, config.context, data.vocabulary
        )
        self.text_projection = projection(config.text_width, config.embed_dim)
        self.scale = Scale()

    def forward(self, batch: Batch) -> Embeddings:
        """Embed the views, each (b, 3, H, W), and the texts."""
        z_bvd = embed_views(self.encoder, self.image_projection, batch.views, "joint")
        return Embeddings(z_bvd, self.embed_text(batch.fields), self.scale(len(batch.ids)))

    def criterion(self, out: Embeddings, targets: tuple[()], batch: Batch) -> Losses:
        """This rank's images and texts against those of all ranks; collective."""
        return contrast(out, batch.num_large)

    def embed_images(self, h: Tensor) -> Tensor:
        """As `method.ReadsText`."""
        z: Tensor = self.image_projection(h)
        return z

    def embed_text(self, fields: Mapping[str, Tensor]) -> Tensor:
        """As `method.ReadsText`."""
        t: Tensor = self.text_projection(self.text(fields))
        return t


class Scale(nn.Module):
    """s = exp(t), learned."""

    def __init__(self) -> None:
        super().__init__()
        # t; (1,), since DeepSpeed cannot send parameters without a dimension
        self.logit_scale = nn.Parameter(torch.tensor([math.log(1 / 0.07)]))

    def forward(self, rows: int) -> Tensor:
        """s for each of `rows` samples; t is cut to [0, ln 100], for the value only."""
        t = self.logit_scale
        cut = t + (t.clamp(0, LARGEST) - t).detach()
        return cut.exp().expand(rows)


def projection(width: int, embed_dim: int) -> nn.Linear:
    """A linear map without bias, initialised as in CLIP's code."""
    linear = nn.Linear(width, embed_dim, bias=False)
    nn.init.normal_(linear.weight, std=width**-0.5)
    return linear


def contrast(out: Embeddings, num_large: int) -> Losses:
    """The loss of images and texts, and its metrics; collective."""
    z_bvd, t_bd = (F.normalize(full(x), dim=-1) for x in (out.z_bvd, out.t_bd))
    z_Bvd, t_Bd = collectives.gather(z_bvd), collectives.gather(t_bd)
    scale_b1 = full(out.scale_b)[:, None]
    image = torch.arange(len(t_bd), device=t_bd.device) + len(t_bd) * collectives.rank()
    views, large = z_bvd.unbind(dim=1), z_Bvd[:, :num_large].unbind(dim=1)
    of_images = [torch.stack(info_nce(scale_b1 * (z_bd @ t_Bd.T), image)) for z_bd in views]
    of_texts = [info_nce(scale_b1 * (t_bd @ z_Bd.T), image)[0] for z_Bd in large]
    loss, accuracy = torch.stack(of_images).mean(dim=0)
    cosine = (z_bvd * t_bd[:, None]).detach().sum(dim=-1).mean()
    return Losses(
        (loss + torch.stack(of_texts).mean()) / 2,
        accuracy.detach(),
        cosine,
        full(out.scale_b).detach().mean(),
    )
