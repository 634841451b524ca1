"""Multinomial logistic regression in float64, by L-BFGS: a linear classifier on what an encoder gives."""

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK_BYTES = 64_000_000  # of float64 logits held at a time
MAX_STEPS = 1000


def fit(
    x: Tensor, classes: Tensor, num_classes: int, c: float, *, tolerance: float, start: Tensor | None = None
) -> Tensor:
    """Weights w that minimise mean(cross-entropy(x w[:d] + w[d])) + |w[:d]|² / (2 c n): scikit-learn's C.

    Args:
        x: (n, d) float64.  classes: (n,) int64, 0 to num_classes - 1.
        c: C > 0, the inverse of the regularisation; the bias w[d] has none.
        tolerance: largest component of the gradient at which the minimum is reached.
        start: where to begin, (d + 1, num_classes); zeros by default. Only the time depends on it, to the tolerance.
    Returns: (d + 1, num_classes) float64 on the device of x.
    """
    n, d = x.shape
    w = torch.zeros(d + 1, num_classes, dtype=torch.float64, device=x.device)
    if start is not None:
        w.copy_(start)
    w.grad = torch.zeros_like(w)
    optimiser = torch.optim.LBFGS(
        [w],
        max_iter=MAX_STEPS,
        max_eval=4 * MAX_STEPS,
        tolerance_grad=tolerance,
        tolerance_change=0.0,
        line_search_fn="strong_wolfe",
    )
    chunk = max(1, CHUNK_BYTES // (8 * num_classes))

    def closure() -> float:
        assert w.grad is not None
        decay = w[:d] / (c * n)
        loss = 0.5 * float((decay * w[:d]).sum())
        w.grad[:d], w.grad[d] = decay, 0.0
        for rows, answers in zip(x.split(chunk), classes.split(chunk)):
            log_p = F.log_softmax(torch.addmm(w[d], rows, w[:d]), dim=1)
            loss -= float(log_p.gather(1, answers[:, None]).sum()) / n
            error = log_p.exp_()
            error.scatter_add_(1, answers[:, None], error.new_full((len(rows), 1), -1.0)).div_(n)
            w.grad[:d] += rows.T @ error
            w.grad[d] += error.sum(dim=0)
        return loss

    optimiser.step(closure)
    return w.detach()


def predict(x: Tensor, w: Tensor) -> Tensor:
    """Class of each row, (n,) int64: the largest logit, of equal ones the lower class."""
    chunk = max(1, CHUNK_BYTES // (8 * w.shape[1]))
    return torch.cat([torch.addmm(w[-1], rows, w[:-1]).argmax(dim=1) for rows in x.split(chunk)])
