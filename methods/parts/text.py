"""A text's tokens, and the causal transformer that reads them (CLIP, Radford et al. 2021, arXiv:2103.00020, section 2.4).

They come as numbers below the size of the vocabulary: bytes of UTF-8, or pairs of bytes as in CLIP, which say the same in
about a quarter as many tokens.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..torchvision_shim import timm

TEXT, LENGTH = "text", "text.length"  # of the fields of a batch
CONTEXT = "Longest text in tokens, with its start and end; what is longer is cut."

Block = timm.models.vision_transformer.Block
QuickGELU = timm.layers.activations.QuickGELU


def tokens(fields: Mapping[str, Tensor], context: int, vocabulary: int) -> tuple[Tensor, Tensor]:
    """Start, each text, end: (n, T) int64, T at most `context`; and where the end stands, (n,) int64.

    fields: `text` (n, longest) whole numbers below `vocabulary`, padded, and `text.length` int64 (n,). The start is the
    number `vocabulary`, the end the next one; what is behind the end is the end again.
    """
    text, length = fields[TEXT][:, : context - 2], fields[LENGTH]
    end = length.clamp(max=context - 2) + 1
    ids = F.pad(text.long(), (1, 1))
    place = torch.arange(ids.shape[1], device=ids.device)
    ids = torch.where(place < end[:, None], ids, vocabulary + 1)
    return torch.cat([torch.full_like(ids[:, :1], vocabulary), ids[:, 1:]], dim=1), end


class Embedding(nn.Module):
    """What each token is, and where it stands."""

    def __init__(self, width: int, context: int, vocabulary: int) -> None:
        super().__init__()
        self.context, self.vocabulary = context, vocabulary
        self.tokens = nn.Embedding(vocabulary + 2, width)
        self.pos_embed = nn.Parameter(torch.empty(context, width))
        nn.init.normal_(self.tokens.weight, std=0.02)
        nn.init.normal_(self.pos_embed, std=0.01)

    def forward(self, fields: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """(n, T, width); and where the end of each text stands, (n,) int64. fields: as `tokens`."""
        ids, end = tokens(fields, self.context, self.vocabulary)
        return self.tokens(ids) + self.pos_embed[: ids.shape[1]], end


class TextTransformer(nn.Module):
    """Texts (n) -> (n, width): what the last layer says at the end of each, normalised."""

    def __init__(self, width: int, layers: int, heads: int, context: int, vocabulary: int) -> None:
        """Initialised as in CLIP's code. Raises ValueError: heads do not divide the width."""
        super().__init__()
        if width % heads:
            raise ValueError(f"the text's {heads} heads must divide its width of {width}")
        self.embedding = Embedding(width, context, vocabulary)
        self.blocks = nn.ModuleList(
            Block(width, heads, qkv_bias=True, act_layer=QuickGELU, norm_layer=nn.LayerNorm)
            for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width)
        for block in self.blocks:
            _initialise(block, width, layers)

    def forward(self, fields: Mapping[str, Tensor]) -> Tensor:
        x, end = self.embedding(fields)
        for block in self.blocks:
            x = block(x, is_causal=True)
        return at(self.norm(x), end)


def at(x: Tensor, place: Tensor) -> Tensor:
    """(n, T, width), (n,) -> (n, width)."""
    return x[torch.arange(len(x), device=x.device), place]


def _initialise(block: Any, width: int, layers: int) -> None:
    narrow = width**-0.5
    nn.init.normal_(block.attn.qkv.weight, std=narrow)
    nn.init.normal_(block.attn.proj.weight, std=narrow * (2 * layers) ** -0.5)
    nn.init.normal_(block.mlp.fc1.weight, std=(2 * width) ** -0.5)
    nn.init.normal_(block.mlp.fc2.weight, std=narrow * (2 * layers) ** -0.5)
    for bias in (block.attn.qkv.bias, block.attn.proj.bias):
        nn.init.zeros_(bias)
