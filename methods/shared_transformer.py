"""One shared transformer: the blocks that read an image's patches read its text, too; the loss is CLIP's.

You et al. 2022 (MS-CLIP), arXiv:2207.12661, section 3: of each block of the image's vision transformer the text takes
the attention, the feed-forward layers, the layer norms (the last norm of the network with them), or all of these.
    block_l(x) = x + attention_l(ln_l(x)),  then  x + ffn_l(ln'_l(x)),  l = 1 ... depth;  parts in `share` are one for both.
Embeddings of patches, tokens and positions, and the two projections, are always of one kind only. Patches see each other,
a token sees those before it. The loss and its scale are those of methods/clip.py. The training code is not published:
what the text has for itself starts as timm starts a ViT.

Tune first: what is shared, then as for clip.

Shape suffixes: b = images on this rank, v = views, full-size ones first, d = embed_dim.
"""

import copy
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, Field, PositiveInt
from torch import Tensor, nn

from .clip import Embeddings, Losses, Scale, contrast, projection
from .method import About, Batch, DataFacts, Encoder, Method, Needs, at_least
from .parts.backbones import TimmEncoder, ZeroInit
from .parts.forwarding import embed_views
from .parts.text import CONTEXT, TEXT, Block, Embedding, at
from .parts.vision_transformer import VisionTransformer
from .torchvision_shim import timm

Share = Literal["attention", "ffn", "ln", "attention+ffn", "all"]
# by their names in a block of timm; the scales of a branch go with it
PARTS = {"attention": ("attn", "ls1"), "ffn": ("mlp", "ls2"), "ln": ("norm1", "norm2")}


class SharedTransformerConfig(BaseModel, frozen=True, extra="forbid", strict=True):
    zero_init_residual: ClassVar[ZeroInit] = "all"

    name: Literal["shared_transformer"] = "shared_transformer"
    share: Share = Field(
        "attention+ffn",
        description="What of each block serves images and texts: attention, ffn, ln, attention+ffn, all.",
    )
    embed_dim: PositiveInt = Field(512, description="Width of the embedding that images and texts share.")
    context: int = Field(256, ge=3, description=CONTEXT)


class SharedTransformer(Method[SharedTransformerConfig, Embeddings, tuple[()]]):
    """A vision transformer, what a text has for itself, and a linear map of each to the width they share."""

    about: ClassVar[About] = About(
        2022, "vision-language", "1 or more views; text, or captions of classes; a vision transformer"
    )
    needs: ClassVar[Needs] = Needs(at_least(1, small=True), fields=(TEXT,), tokens=True)

    def __init__(self, config: SharedTransformerConfig, encoder: Encoder, data: DataFacts) -> None:
        super().__init__(config, encoder, data)
        self.image_projection = projection(encoder.dim, config.embed_dim)
        self.text = TextInBlocks(vit_of(encoder), config.share, config.context, data.vocabulary)
        self.text_projection = projection(encoder.dim, config.embed_dim)
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
        t: Tensor = self.text_projection(self.text(vit_of(self.encoder), fields))
        return t


class TextInBlocks(nn.Module):
    """What a text has for itself. The shared parts stay the image's: they are lent for each forward, and stored once."""

    def __init__(self, image: Any, share: Share, context: int, vocabulary: int) -> None:
        super().__init__()
        self.embedding = Embedding(image.embed_dim, context, vocabulary)
        shared = PARTS if share == "all" else share.split("+")
        names = [name for part, of_part in PARTS.items() if part not in shared for name in of_part]
        self.blocks = nn.ModuleList(
            nn.ModuleDict({name: _anew(getattr(block, name)) for name in names}) for block in image.blocks
        )
        self.norm = None if "ln" in shared else _anew(_last_norm(image))

    def forward(self, image: Any, fields: Mapping[str, Tensor]) -> Tensor:
        """Texts (n) -> (n, width): what the last layer says at the end of each, normalised."""
        x, end = self.embedding(fields)
        block: Any
        own: Any
        for block, own in zip(image.blocks, self.blocks, strict=True):
            part = dict(block.named_children()) | dict(own.items())
            x = x + block.drop_path1(part["ls1"](part["attn"](part["norm1"](x), is_causal=True)))
            x = x + block.drop_path2(part["ls2"](part["mlp"](part["norm2"](x))))
        norm = _last_norm(image) if self.norm is None else self.norm
        return at(norm(x), end)


def vit_of(encoder: Encoder) -> Any:
    """The vision transformer of an encoder. Raises ValueError: it is none, or its blocks are not the plain ones."""
    if not isinstance(encoder, TimmEncoder) or not isinstance(encoder.backbone, VisionTransformer):
        raise ValueError(
            "encoder.name: shared_transformer needs a vision transformer of timm, e.g. vit_small_patch16_224"
        )
    network: Any = encoder.backbone
    if any(type(block) is not Block for block in network.blocks):
        raise ValueError(
            "encoder.name: shared_transformer needs blocks of attention, then feed-forward; this ViT has others"
        )
    return network


def _last_norm(image: Any) -> nn.Module:
    """Before pooling, or behind the mean of the tokens."""
    norm: nn.Module = image.fc_norm if isinstance(image.norm, nn.Identity) else image.norm
    return norm


def _anew(module: nn.Module) -> nn.Module:
    """One like it with initial weights of its own."""
    return copy.deepcopy(module).apply(timm.models.vision_transformer.init_weights_vit_timm)
