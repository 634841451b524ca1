"""Text as bytes, and the causal transformer that reads it (CLIP, Radford et al. 2021, arXiv:2103.00020, section 2.4).

A token is a byte of UTF-8. CLIP has 49,408 pairs of bytes instead, which must be trained or kept somewhere; bytes say
the same in about four times as many tokens.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..torchvision_shim import timm

START, END = 256, 257  # beside the bytes
VOCABULARY = 258
TEXT, LENGTH = "text", "text.length"  # of the fields of a batch
CONTEXT = "Longest text in bytes, with its start and end; what is longer is cut."

Block = timm.models.vision_transformer.Block
QuickGELU = timm.layers.activations.QuickGELU


def tokens(fields: Mapping[str, Tensor], context: int) -> tuple[Tensor, Tensor]:
    """START, the bytes of each text, END: (n, T) int64, T at most `context`; and where END stands, (n,) int64.

    fields: `text` uint8 (n, longest), padded, and `text.length` int64 (n,). What is behind END is END again.
    """
    text, length = fields[TEXT][:, : context - 2], fields[LENGTH]
    end = length.clamp(max=context - 2) + 1
    ids = F.pad(text.long(), (1, 1))
    place = torch.arange(ids.shape[1], device=ids.device)
    ids = torch.where(place < end[:, None], ids, END)
    return torch.cat([torch.full_like(ids[:, :1], START), ids[:, 1:]], dim=1), end


class Embedding(nn.Module):
    """Tokens (n, T) -> (n, T, width): what each is, and where it stands."""

    def __init__(self, width: int, context: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, width)
        self.pos_embed = nn.Parameter(torch.empty(context, width))
        nn.init.normal_(self.tokens.weight, std=0.02)
        nn.init.normal_(self.pos_embed, std=0.01)

    def forward(self, ids: Tensor) -> Tensor:
        x: Tensor = self.tokens(ids) + self.pos_embed[: ids.shape[1]]
        return x


class TextTransformer(nn.Module):
    """Texts (n) -> (n, width): what the last layer says at the end of each, normalised."""

    def __init__(self, width: int, layers: int, heads: int, context: int) -> None:
        """Initialised as in CLIP's code. Raises ValueError: heads do not divide the width."""
        super().__init__()
        if width % heads:
            raise ValueError(f"the text's {heads} heads must divide its width of {width}")
        self.context = context
        self.embedding = Embedding(width, context)
        self.blocks = nn.ModuleList(
            Block(width, heads, qkv_bias=True, act_layer=QuickGELU, norm_layer=nn.LayerNorm)
            for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width)
        for block in self.blocks:
            _initialise(block, width, layers)

    def forward(self, fields: Mapping[str, Tensor]) -> Tensor:
        ids, end = tokens(fields, self.context)
        x = self.embedding(ids)
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
