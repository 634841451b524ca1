"""Multinomial logistic regression in float64, by L-BFGS: a linear classifier on what an encoder gives."""

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK_BYTES = 64_000_000  # of float64 logits held at a time
MAX_STEPS = 1000


class Regression:
    """Finds w that minimises mean(cross-entropy(x w[:d] + w[d])) + |w[:d]|² / (2 C n): scikit-learn's objective.

    In coordinates v in which the second derivative at w = 0, S / K + 1 / (C n) with S the covariance of x, is the
    identity. The minimum is the same one, reached in tens of steps whatever C is; L-BFGS would need thousands for
    features that mostly share a direction, or stop far from it.
    """

    def __init__(self, x: Tensor, classes: Tensor, num_classes: int) -> None:
        """x: (n, d) float64.  classes: (n,) int64, 0 to num_classes - 1."""
        self.classes, self.num_classes = classes, num_classes
        self.mean = x.mean(dim=0)
        centred = x - self.mean  # the bias, which is free, takes up the difference
        self.variances, self.axes = torch.linalg.eigh(centred.T @ centred / len(x))
        self.rows = centred @ self.axes

    def fit(self, c: float, *, tolerance: float) -> Tensor:
        """w, (d + 1, num_classes) float64, on the device of x.

        c: C > 0, the inverse of the regularisation; the bias w[d] has none.  tolerance: largest component of the
        gradient in v at which the minimum is reached.
        """
        n, d = self.rows.shape
        decay = 1 / (c * n)
        scale = (self.variances.clamp_min(0) / self.num_classes + decay).rsqrt()[:, None]
        v = self.rows.new_zeros(d + 1, self.num_classes)
        v.grad = torch.zeros_like(v)
        optimiser = torch.optim.LBFGS(
            [v],
            max_iter=MAX_STEPS,
            max_eval=4 * MAX_STEPS,
            tolerance_grad=tolerance,
            tolerance_change=0.0,
            line_search_fn="strong_wolfe",
        )

        def closure() -> float:
            assert v.grad is not None
            w = scale * v[:d]
            loss, slope, v.grad[d] = self._cross_entropy(w, v[d])
            v.grad[:d] = scale * (slope + decay * w)
            return loss + 0.5 * decay * float((w * w).sum())

        optimiser.step(closure)
        w = self.axes @ (scale * v[:d])
        return torch.cat([w, v[d:] - self.mean @ w])

    def _cross_entropy(self, w: Tensor, bias: Tensor) -> tuple[float, Tensor, Tensor]:
        """The mean over the rows, and its gradients by w and bias."""
        n, loss, slope, slope_bias = len(self.rows), 0.0, torch.zeros_like(w), torch.zeros_like(bias)
        chunk = max(1, CHUNK_BYTES // (8 * self.num_classes))
        for rows, answers in zip(self.rows.split(chunk), self.classes.split(chunk)):
            log_p = F.log_softmax(torch.addmm(bias, rows, w), dim=1)
            loss -= float(log_p.gather(1, answers[:, None]).sum()) / n
            error = log_p.exp_()
            error.scatter_add_(1, answers[:, None], error.new_full((len(rows), 1), -1.0)).div_(n)
            slope += rows.T @ error
            slope_bias += error.sum(dim=0)
        return loss, slope, slope_bias


def predict(x: Tensor, w: Tensor) -> Tensor:
    """Class of each row, (n,) int64: the largest logit, of equal ones the lower class."""
    chunk = max(1, CHUNK_BYTES // (8 * w.shape[1]))
    return torch.cat([torch.addmm(w[-1], rows, w[:-1]).argmax(dim=1) for rows in x.split(chunk)])
