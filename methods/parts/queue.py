"""A first-in-first-out queue of keys, the same on every rank."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Queue(nn.Module):
    """The newest `size` keys; before that, random unit vectors (MoCo, arXiv:1911.05722, section 3.2).

    Equal on all ranks as long as they start from one seed and enqueue the same gathered rows.
    """

    keys: Tensor  # (size, dim) fp32
    pointer: Tensor  # 0-d int64: the row written next

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("keys", F.normalize(torch.randn(size, dim), dim=1))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def enqueue(self, rows: Tensor) -> None:
        """Overwrite the oldest keys by rows (b, dim), in order, going on at row 0 past the end."""
        size = len(self.keys)
        slots = (self.pointer + torch.arange(len(rows), device=rows.device)) % size
        # More rows than slots: only the newest survive, and no slot is written twice.
        self.keys[slots[-size:]] = rows[-size:].to(self.keys.dtype)
        self.pointer.add_(len(rows)).remainder_(size)
