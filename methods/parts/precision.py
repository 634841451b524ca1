"""Losses are computed in fp32, whatever the precision of the networks."""

import torch
from torch import Tensor


def full(x: Tensor) -> Tensor:
    """Half precision -> float32; float32 and float64 as they are."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
