"""A global batch whose ranks differ, how it is cut, and every method as small as it can be, in float64."""

import copy
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from small_methods import FACTS, patch_encoder, small_vit, sweep_of, texts
from torch import Tensor, nn

from vergence.methods import collectives
from vergence.methods.catalog import METHODS
from vergence.methods.method import Batch, Method
from vergence.methods.parts.backbones import EncoderConfig, build_encoder
from vergence.methods.parts.patches import PatchAugmentation

G = 24  # global batch: shares of 24, 12, 8
GROUP, SPAN = 2, 4  # samples that share statistics; samples that shuffling BN permutes
MICRO = 8
WIDTHS = {  # of the methods that have them
    "hidden_dim": 16,
    "embed_dim": 8,
    "bottleneck_dim": 8,
    "queue_size": 32,
    "prototypes": 12,
    "outputs": 12,
    "clusters": 6,
    "memory_size": 32,
    "text_width": 16,
    "text_layers": 2,
    "text_heads": 2,
    "num_negatives": 32,
}
BLANK = range(4, 6)  # a norm group of blank frames, in the batches of toy-blank
FORMS: dict[str, dict[str, Any]] = {
    "": {},
    "symmetric": {"symmetric": True},
    "predictor": {"predictor": True},
    "asymmetric": {"predictor": True, "stop_gradient": True},
}


class Out(NamedTuple):
    z: Tensor
    unused: Tensor


class Keys(NamedTuple):
    k: Tensor


class Losses(NamedTuple):
    loss: Tensor
    target_norm: Tensor


class Toy(Method[None, Out, Keys]):
    """NT-Xent against a teacher's keys, plus a term in global statistics; two views joint."""

    def __init__(self, dropout: float = 0.0) -> None:
        torch.manual_seed(0)
        encoder: Any = nn.Sequential(
            nn.Conv2d(3, 6, 3, bias=False),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
        )
        super().__init__(None, encoder, FACTS)
        self.head = nn.Sequential(
            nn.Linear(24, 10, bias=False),
            nn.BatchNorm1d(10),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(10, 5),
        )
        self.teacher = copy.deepcopy(nn.Sequential(self.encoder, self.head)).requires_grad_(False)

    def forward(self, batch: Batch) -> Out:
        z = self.head(self.encoder(torch.cat(list(batch.views))))
        return Out(z.unflatten(0, (2, -1)).transpose(0, 1), z[: len(batch.ids)].detach())

    def targets(self, batch: Batch) -> Keys:
        return Keys(F.normalize(self.teacher(batch.views[1]), dim=1))

    def criterion(self, out: Out, targets: Keys, batch: Batch) -> Losses:
        assert not batch.views
        assert len(batch.ids) == len(out.z) == len(targets.k)
        z = F.normalize(out.z, dim=-1)
        keys = collectives.gather(torch.cat([z[:, 1], targets.k], dim=1))
        logits = torch.cat([z[:, 0], z[:, 0]], dim=1) @ keys.T / 0.2
        labels = torch.arange(len(z)) + len(z) * collectives.rank()
        spread = collectives.mean(out.z.square().mean(dim=(0, 1))).log().mean()
        weight = batch.fields["weight"]
        loss = (F.cross_entropy(logits, labels, reduction="none") * weight).mean() + spread
        return Losses(loss, targets.k.norm())


def global_batch() -> dict[str, Tensor]:
    """Skewed over the positions, so that ranks and micro-batches differ in mean and scale."""
    generator = torch.Generator().manual_seed(3)
    base = torch.randn(G, 3, 8, 8, generator=generator, dtype=torch.float64)
    position = torch.linspace(0, 2, G, dtype=torch.float64).view(-1, 1, 1, 1)
    noise = torch.randn(2, G, 3, 8, 8, generator=generator, dtype=torch.float64)
    views = base * (1 + position) + position + 0.5 * noise
    shuffle = torch.cat([torch.randperm(SPAN, generator=generator) for _ in range(G // SPAN)])
    return {"views": views, "weight": 1 + position.flatten(), "shuffle": shuffle, **texts(G)}


def micro_batches(
    rank: int, world_size: int, micro: int, shuffles: bool, blank: bool = False, crops: bool = False
) -> list[Batch]:
    whole, share = global_batch(), G // world_size
    if blank:
        whole["views"][:, BLANK] = 1.0
    small = [view[..., :6, 1:7] for view in whole["views"].flip(3)] if crops else []
    batches = []
    for start in range(rank * share, (rank + 1) * share, micro):
        rows = slice(start, start + micro)
        views = [
            view[rows].contiguous(memory_format=torch.channels_last) for view in [*whole["views"], *small]
        ]
        # permutations inside a span are the same wherever the micro-batch is cut
        offsets = torch.arange(micro) // SPAN * SPAN
        batches.append(
            Batch(
                views=views,
                ids=torch.arange(start, start + micro),
                fields={key: whole[key][rows] for key in ("weight", "text", "text.length")},
                shuffle=whole["shuffle"][rows] + offsets if shuffles else None,
            )
        )
    return batches


def build(name: str) -> Any:
    torch.manual_seed(0)
    if name.startswith("toy"):
        return Toy(dropout=0.3 if name == "toy-dropout" else 0.0).double().train()
    name, _, form = name.removesuffix("-crops").partition("-")
    config_class, cls = METHODS[name]
    small: dict[str, Any] = {k: width for k, width in WIDTHS.items() if k in config_class.model_fields}
    if name == "dino":
        small["projector_norm"] = "batch"
    small |= FORMS[form]
    encoder = build_encoder(
        EncoderConfig(name="resnet18", stem="cifar", width=0.125, split="rgb" if name == "cmc" else None)
    )
    if name in ("cpc", "cpc_v2"):
        small |= {"steps": 2, "context_dim": 8, "patches": PatchAugmentation(shift=1, flip=0.5)}
        small |= {"skipped": 0} if name == "cpc_v2" else {}
        encoder = patch_encoder()
    if name == "shared_transformer":
        encoder = small_vit()
    method = cls.build(config_class(**small), encoder, FACTS).double().train()
    method.before_epoch(0, sweep_of(method))
    return method
