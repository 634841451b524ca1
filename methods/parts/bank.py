"""A bank with a row for each sample, the same on every rank (Wu et al. 2018, arXiv:1805.01978, section 3.1)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import collectives
from .draws import words


class Bank(nn.Module):
    """Row i is the running mean of what sample i was embedded as; before that a random vector of length about 1.

    Rows of samples that are held out stay random. Equal on all ranks as long as they start from one seed.
    """

    rows: Tensor  # (num_ids, dim) fp32
    seed: Tensor  # 0-d int64, of the draws

    def __init__(self, num_ids: int, dim: int) -> None:
        super().__init__()
        bound = 1 / math.sqrt(dim / 3)
        self.register_buffer("rows", torch.empty(num_ids, dim).uniform_(-bound, bound))
        self.register_buffer("seed", torch.randint(2**62, ()))

    def draw(self, ids: Tensor, count: int, progress: float) -> Tensor:
        """(b, count) int64 ids, uniform with replacement: a hash of the bank's seed, each of `ids`, and progress.

        So that they depend neither on ranks and micro-batches, nor on what was drawn before.
        """
        return words(self.seed, ids, count, progress) % len(self.rows)

    @torch.no_grad()
    def update(self, ids: Tensor, vectors: Tensor, momentum: float, present: Tensor | None = None) -> None:
        """row <- hat(momentum * row + (1 - momentum) * vector), for this rank's ids (b,) and vectors (b, d) and all others'.

        Of an id that comes twice in the global batch the later vector counts. present: (b,) bool, which rows to
        change; default: all. Collective.
        """
        if present is not None:
            present = collectives.gather(present.to(torch.int64)).bool()
        ids, vectors = collectives.gather(ids), collectives.gather(vectors)
        rows = F.normalize(momentum * self.rows[ids] + (1 - momentum) * vectors.to(self.rows.dtype), dim=1)
        place = torch.arange(1, len(ids) + 1, device=ids.device)
        if present is not None:
            rows = torch.where(present[:, None], rows, self.rows[ids])
            place = torch.where(present, place + len(ids), place)
        last = ((ids[:, None] == ids) * place).argmax(dim=1)
        self.rows[ids] = rows[last]  # the same row wherever an id comes again
