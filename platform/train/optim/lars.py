"""LARS: steps in proportion to each layer's weight norm.

You, Gitman & Ginsburg 2017, arXiv:1708.03888, Algorithm 1, in the form of the Barlow Twins and VICReg code
(the learning rate outside the momentum). With gradient g, weights w, decay wd, trust eta, momentum mu:
    g <- g + wd w;   r = eta |w| / |g| if both > 0 else 1;   v <- mu v + r g;   w <- w - lr v
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


class LARS(torch.optim.Optimizer):
    """Group keys: lr, weight_decay, momentum, trust (eta), adapt (False: r = 1, plain SGD).

    Needs whole parameters: flat slices of several layers (ZeRO stage >= 1) have no layer norms.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust: float = 1e-3,
        adapt: bool = True,
    ) -> None:
        super().__init__(
            params,
            {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust": trust, "adapt": adapt},
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        assert closure is None, "LARS takes no closure"
        for group in self.param_groups:
            weights = [w for w in group["params"] if w.grad is not None]
            if weights:
                self._step(weights, group)

    def _step(self, weights: list[Tensor], group: dict[str, Any]) -> None:
        grads: Any = [w.grad for w in weights]
        if group["weight_decay"]:
            grads = torch._foreach_add(grads, weights, alpha=group["weight_decay"])
        if group["adapt"]:
            norms = zip(torch._foreach_norm(weights), torch._foreach_norm(grads))
            ratios = [
                torch.where((w > 0) & (g > 0), group["trust"] * w / g, torch.ones_like(w)) for w, g in norms
            ]
            grads = torch._foreach_mul(grads, ratios)
        if group["momentum"]:
            buffers = [self._buffer(w) for w in weights]
            torch._foreach_mul_(buffers, group["momentum"])
            torch._foreach_add_(buffers, grads)
            grads = buffers
        torch._foreach_add_(weights, grads, alpha=-group["lr"])

    def _buffer(self, w: Tensor) -> Tensor:
        state: dict[str, Tensor] = self.state[w]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(w)
        return state["momentum_buffer"]
