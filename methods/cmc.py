"""CMC: parts of a scene that different sensors see (luminance, colours, depth) know which of them belong together.

Tian et al. 2019, arXiv:1906.05849, eq. 2-9. Part a of image i has the unit embedding u_i^a by a network of its own. With a
bank of rows v^c for each part c, the direction a -> c tells the row of its own image from K drawn ones:
    NCE:      P_j = exp(v_j^c.u_i^a / T) / Z^ac;  l = -log P_i / (P_i + K / n) - sum_j log (K / n) / (P_j + K / n)
    softmax:  l = -log( exp(v_i^c.u_i^a / T) / ( exp(v_i^c.u_i^a / T) + sum_j exp(v_j^c.u_i^a / T) ) )
    L = sum over directions of the mean of l over the images that have both parts
graph full: all ordered pairs of parts (eq. 9); core: both directions between the first part and each other one (eq. 8).
All directions share their draws; Z^ac is n times the mean of exp(v.u / T) in the first batch, then constant; after each step
    v_i^c <- hat(momentum v_i^c + (1 - momentum) u_i^c)  where image i has part c.
negatives batch: softmax over the other images of the global batch, without a bank. Parts come from encoder.split: L and ab
of Lab (the official code), Y and DbDr (a little better, table 7), or the three primaries; the encoder that is exported puts
their representations side by side. Behind them come method.maps, what other sensors saw of the picture, each with a network
of its own that is not exported: KEY.npy, uint8 (H, W, maps) as large as the picture and cropped with it, 255 where unknown;
a map that knows no pixel of a crop is missing there. With more views each gives anchors and the first one the rows. Defaults
of the paper, whose networks of maps are larger.

Tune first: temperature and learning rate; rows are an epoch old, so that it wants 20 epochs or more.

Shape suffixes: b = images on this rank, v = views, a = b * v anchors, m = parts, d = embed_dim.
"""

from itertools import permutations
from typing import ClassVar, Literal, NamedTuple, Self

import torch
import torch.nn.functional as F
from pydantic import BaseModel, Field, PositiveInt, model_validator
from torch import Tensor, nn

from . import collectives
from .method import About, Batch, DataFacts, Encoder, Method, Needs, at_least
from .parts.backbones import ZeroInit
from .parts.bank import Bank
from .parts.contrast import info_nce, nce, scores
from .parts.maps import MapConfig, MapNetwork, channels, cropped, read
from .parts.precision import full
from .schedule import Positive, Share, scheduled

MAPS = "array"  # of the fields of a batch
MAP_DIM = 128  # width of a map's representation


class CMCConfig(BaseModel, frozen=True, extra="forbid", strict=True):
    zero_init_residual: ClassVar[ZeroInit] = "none"

    name: Literal["cmc"] = "cmc"
    embed_dim: PositiveInt = Field(128, description="Width of the embedding of each part.")
    temperature: Positive = Field(
        0.07, description="T; cosine similarities are divided by it; a number or a schedule."
    )
    graph: Literal["full", "core"] = Field(
        "full", description="Every part against every other; or against the first."
    )
    negatives: Literal["bank", "batch"] = Field(
        "bank", description="Rows of earlier embeddings, or the batch."
    )
    form: Literal["nce", "softmax"] = Field("nce", description="Noise-contrastive estimation, or softmax.")
    num_negatives: PositiveInt = Field(16384, description="K, rows drawn for each image from a bank.")
    momentum: Share = Field(0.5, description="Of a row when it is mixed with the new embedding.")
    maps: tuple[MapConfig, ...] = Field(
        (), description="Modalities beside the image, in the order of the last axis of each sample's .npy."
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.form == "nce" and self.negatives == "batch":
            raise ValueError(
                "negatives batch goes with form softmax: nce compares with rows drawn from a bank"
            )
        if len({each.name for each in self.maps}) < len(self.maps):
            raise ValueError("two maps have one name")
        return self


class Embeddings(NamedTuple):
    u_bvmd: Tensor  # projectors' outputs, not normalised
    present_bvm: Tensor  # 1 where the image has the part, else 0


class Losses(NamedTuple):
    loss: Tensor
    accuracy: Tensor  # share of anchors that find their own image, mean over directions
    positive_cosine: Tensor


class CMC(Method[CMCConfig, Embeddings, tuple[()]]):
    """An encoder of several parts, a linear projector and a bank for each."""

    about: ClassVar[About] = About(
        2019, "instance contrast", "1 or more views; encoder.split or maps (.npy), banks by sample id"
    )
    needs: ClassVar[Needs] = Needs(at_least(1))

    normalisers: Tensor  # (m, m), Z of each direction; 0 before the first step

    def __init__(self, config: CMCConfig, encoder: Encoder, data: DataFacts) -> None:
        super().__init__(config, encoder, data)
        dims = [*(encoder.part_dims or (encoder.dim,)), *(MAP_DIM for _ in config.maps)]
        m = len(dims)
        if m < 2:
            raise ValueError(
                "encoder.split: cmc contrasts parts of an image; give lab, ydbdr or rgb, or maps (method.maps)"
            )
        if config.maps:
            self.needs = Needs(at_least(1), (MAPS,), places=True)  # type: ignore[misc]  # as the recipe's method has them
        self.maps = nn.ModuleDict({each.name: MapNetwork(channels(each), MAP_DIM) for each in config.maps})
        self.temperature, self.momentum = scheduled(config.temperature), scheduled(config.momentum)
        self.projectors = nn.ModuleList(nn.Linear(dim, config.embed_dim) for dim in dims)
        with_bank = m if config.negatives == "bank" else 0
        self.banks = nn.ModuleList(Bank(data.num_ids, config.embed_dim) for _ in range(with_bank))
        self.register_buffer("normalisers", torch.zeros(m, m))
        directions = permutations(range(m), 2)
        self.directions = [(a, c) for a, c in directions if config.graph == "full" or 0 in (a, c)]

    def forward(self, batch: Batch) -> Embeddings:
        """Embed the parts of each view, (b, 3, H, W)."""
        embedded, present = [], []
        for number, view in enumerate(batch.views):
            parts, there = self._parts(batch, number, view)
            heads = zip(self.projectors, parts, strict=True)
            embedded.append(torch.stack([head(h) for head, h in heads], dim=1))
            present.append(there)
        return Embeddings(torch.stack(embedded, dim=1), torch.stack(present, dim=1).to(embedded[0].dtype))

    def _parts(self, batch: Batch, number: int, view: Tensor) -> tuple[list[Tensor], Tensor]:
        """Representations of the parts of a view, and (b, m) whether it has them."""
        if self.encoder.part_dims:
            parts, there = self.encoder.parts(view)
        else:
            parts, there = [self.encoder(view)], torch.ones(len(view), 1, device=view.device)
        if not self.maps:
            return parts, there
        field = batch.fields[MAPS]
        if field.dim() != 4 or field.dtype != torch.uint8 or field.shape[-1] != len(self.maps):
            raise ValueError(
                f"{len(self.maps)} maps are arrays (H, W, {len(self.maps)}) of uint8, got {tuple(field.shape[1:])} of "
                f"{field.dtype}"
            )
        seen = cropped(field, batch.geometry[number], view.shape[-1]).unbind(dim=-1)
        for config, values, network in zip(self.config.maps, seen, self.maps.values(), strict=True):
            x, known = read(values, config, view.dtype)
            parts.append(network(x))
            there = torch.cat([there, known[:, None].to(there.dtype)], dim=1)
        return parts, there

    def criterion(self, out: Embeddings, targets: tuple[()], batch: Batch) -> Losses:
        """Sum over directions of this rank's part, against the banks as they were before this batch; collective."""
        terms = [self._direction(out, batch, a, c) for a, c in self.directions]
        loss, accuracy, cosine = (torch.stack(each) for each in zip(*terms, strict=True))
        return Losses(loss.sum(), accuracy.detach().mean(), cosine.detach().mean())

    @torch.no_grad()
    def after_step(self, out: Embeddings, targets: tuple[()], batch: Batch) -> None:
        """Keep Z of the first step, then mix the first view's embeddings into the rows of all ranks' images."""
        if not self.banks:
            return
        if self.config.form == "nce" and not self.normalisers.any():
            for a, c in self.directions:
                logits, _, weights = self._logits(out, batch, a, c)
                self.normalisers[a, c] = self._estimate(logits, weights, c)
        u, momentum = (
            F.normalize(full(out.u_bvmd[:, 0]), dim=-1),
            self.momentum.at(batch.progress, self.data.epochs),
        )
        for c, bank in enumerate(self.banks):
            assert isinstance(bank, Bank)
            bank.update(batch.ids, u[:, c], momentum, out.present_bvm[:, 0, c] > 0)

    def _direction(self, out: Embeddings, batch: Batch, a: int, c: int) -> tuple[Tensor, Tensor, Tensor]:
        """Loss, accuracy and cosine to the positive of a -> c, 0-d each."""
        logits, positive, weights = self._logits(out, batch, a, c)
        loss, accuracy = info_nce(logits, positive, weights)
        if self.config.form == "nce":
            z = torch.where(
                self.normalisers[a, c] > 0, self.normalisers[a, c], self._estimate(logits, weights, c)
            )
            loss = nce(logits, z.log(), self.data.num_ids, weights)
        temperature = self.temperature.at(batch.progress, self.data.epochs)
        cosine = (logits.gather(1, positive[:, None])[:, 0] * weights).sum() * temperature
        return loss, accuracy, cosine

    def _logits(self, out: Embeddings, batch: Batch, a: int, c: int) -> tuple[Tensor, Tensor, Tensor]:
        """Scores of the anchors of part a with candidates of part c, the positive's column, and the anchors' weights.

        Weights are 0 where either part is missing; their sums over the ranks' anchors have a mean of 1.
        """
        u, present = F.normalize(full(out.u_bvmd), dim=-1), full(out.present_bvm).detach()
        T, v = self.temperature.at(batch.progress, self.data.epochs), u.shape[1]
        anchors, both = u[:, :, a].flatten(0, 1), (present[:, :, a] * present[:, :, c]).flatten()
        weights = both / collectives.mean(both.sum()).clamp(min=1e-12)
        if self.config.negatives == "batch":
            keys, there = collectives.gather(u[:, 0, c]), collectives.gather(present[:, 0, c])
            own = (torch.arange(len(u), device=u.device) + len(u) * collectives.rank()).repeat_interleave(v)
            absent = (there == 0).expand(len(anchors), -1).scatter(1, own[:, None], False)
            return (anchors @ keys.T / T).masked_fill(absent, float("-inf")), own, weights
        bank, own = self.banks[c], batch.ids.repeat_interleave(v)
        first = self.banks[0]
        assert isinstance(bank, Bank)
        assert isinstance(first, Bank)
        drawn = bank.rows[first.draw(own, self.config.num_negatives, batch.progress)]  # (a, K, d)
        return scores(anchors, bank.rows[own], drawn, T), torch.zeros_like(own), weights

    @torch.no_grad()
    def _estimate(self, logits: Tensor, weights: Tensor, c: int) -> Tensor:
        """Z from the scores of all ranks, 0-d."""
        return self.data.num_ids * collectives.mean((logits.exp().mean(dim=1) * weights).sum())
