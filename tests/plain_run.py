"""A run written down plainly: one process, float64, the whole global batch at once, nothing of the platform.

What the rank loop does on any number of ranks, in any regime, is this to rounding. Order, views, shuffles and
dropout follow from seed, sample and step by the formulas that the design names; the numbers in `chain` are the
streams' names, part of every run's identity.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from plain_rng import chain, permutation, uniform
from torch import Tensor, nn

from vergence.methods.method import Encoder

DROPOUT = 0.2
ORDER, SHUFFLE, DRAWS = 0x504C414E, 0x5B, 0xD2
FLIP, FACTORS = 2, 4  # operations of a view


class TinyEncoder(Encoder):
    """(n, 3, 8, 8) -> (n, 8), with a batch norm and with dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.dim = 8
        self.conv, self.norm = nn.Conv2d(3, 8, 3, stride=2, bias=False), nn.BatchNorm2d(8)
        self.dropout = nn.Dropout(DROPOUT)

    def forward(self, images: Tensor) -> Tensor:
        return self.dropout(F.relu(self.norm(self.conv(images))).mean((2, 3)))


@dataclass(frozen=True)
class Setting:
    """A recipe in numbers. Views: flip with probability 1/2, brightness from [1/2, 3/2]."""

    method: str
    seed: int
    epochs: int
    global_batch: int
    micro: int  # samples whose forward draws dropout from one seed
    group: int  # samples that share batch-norm statistics
    span: int | None  # samples that shuffling BN permutes
    lr: float  # of the global batch
    warmup_epochs: float
    momentum: float
    weight_decay: float
    clip: float
    frozen: str  # beginning of the names that stand still ...
    frozen_until: float  # ... for so many epochs
    teacher_momentum: float
    temperature: float
    mean: float
    std: float


class PlainRun:
    """State of a run between two steps, by the names of the method's state dict.

    state: what the method starts from; images: (N, 8, 8, 3) uint8; unstable: steps whose loss or gradient is
    not finite on some rank; bad: the step of each unreadable sample; first_id: of the first image.
    """

    def __init__(
        self,
        setting: Setting,
        state: dict[str, Tensor],
        images: np.ndarray,
        unstable: Collection[int] = (),
        bad: Sequence[int] = (),
        first_id: int = 0,
    ) -> None:
        self.setting, self.images, self.first_id = setting, images, first_id
        self.unstable, self.bad = unstable, bad
        self.state = {name: v.double() if v.is_floating_point() else v.clone() for name, v in state.items()}
        self.trained = [
            name for name in state if name.split(".")[-1] in ("weight", "bias") and "teacher" not in name
        ]
        self.buffers = {name: torch.zeros_like(self.state[name]) for name in self.trained}
        self.step, self.updates, self.skipped = 0, 0, 0
        self.per_epoch = len(images) // setting.global_batch
        self.steps = setting.epochs * self.per_epoch
        self._moments: dict[str, list[tuple[Tensor, Tensor]]] = {}

    def order(self, step: int) -> np.ndarray:
        """Rows of `images` in the global batch of a step."""
        epoch, batch = divmod(step, self.per_epoch)
        order = permutation(len(self.images), ORDER, self.setting.seed, epoch)
        return np.array(order[batch * self.setting.global_batch :][: self.setting.global_batch])

    def train_step(self) -> dict[str, float]:
        """One global batch; the metrics of the step."""
        s, w = self.setting, {name: v.detach() for name, v in self.state.items()}
        for name in self.trained:
            w[name].requires_grad_()
        self._moments.clear()
        losses, first_view = self._losses(w)
        grads = dict(zip(self.trained, torch.autograd.grad(losses["loss"], [w[n] for n in self.trained])))
        progress = self.step / self.steps
        moving = [
            name
            for name in self.trained
            if not (name.startswith(s.frozen) and progress * s.epochs < s.frozen_until)
        ]
        norm = torch.stack([grads[name].norm() for name in moving]).norm()
        lr = s.lr * self._warmed(progress)
        if self.step in self.unstable:
            self.skipped += 1
        else:
            for name in moving:
                grad = grads[name] * min(1, s.clip / norm) + s.weight_decay * w[name].detach()
                self.buffers[name] = s.momentum * self.buffers[name] + grad
                self.state[name] = w[name].detach() - lr * self.buffers[name]
            self._follow(progress)
            self.updates += 1
        counts = self._counts()
        self.step += 1
        norms = {"grad_norm": norm, "grad_norm_first": grads["encoder.conv.weight"].norm()}
        spread = {"embedding_std": F.normalize(first_view, dim=1).std(0, correction=0).mean()}
        return {"lr": lr, **counts} | {n: v.item() for n, v in {**losses, **norms, **spread}.items()}

    def _counts(self) -> dict[str, int]:
        epoch = self.step // self.per_epoch
        bad = [step for step in self.bad if step <= self.step]
        in_epoch = [step for step in bad if step // self.per_epoch == epoch]
        return {
            "updates": self.updates,
            "skipped": self.skipped,
            "bad": len(bad),
            "bad_in_epoch": len(in_epoch),
        }

    def arrays(self) -> dict[str, np.ndarray]:
        """Copies of all state, by the names of a commit."""
        model = {f"model.{name}": value for name, value in self.state.items()}
        optim = {f"optim.{name}.momentum_buffer": value for name, value in self.buffers.items()}
        return {name: value.detach().numpy().copy() for name, value in (model | optim).items()}

    def _warmed(self, progress: float) -> float:
        warmup = self.setting.warmup_epochs / self.setting.epochs
        if progress < warmup:
            return progress / warmup
        return (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup))) / 2

    def _follow(self, progress: float) -> None:
        """After the optimiser's step: running statistics, teacher, queue."""
        s = self.setting
        for name, moments in self._moments.items():
            for running, values in zip(("mean", "var"), zip(*moments)):
                old = self.state[f"{name}.running_{running}"]
                self.state[f"{name}.running_{running}"] = 0.9 * old + 0.1 * torch.stack(values).mean(0)
            self.state[f"{name}.num_batches_tracked"] += 1
        m = s.teacher_momentum
        if s.method == "byol":
            m = 1 - (1 - m) * (1 + math.cos(math.pi * progress)) / 2
        for name in self.trained:
            teacher = name.replace("encoder.", "teacher.0.").replace("projector.", "teacher.1.")
            if teacher != name and teacher in self.state:
                self.state[teacher] = m * self.state[teacher] + (1 - m) * self.state[name]
        if s.method == "mocov2":
            for key in self._keys:
                self.state["queue.keys"][self.state["queue.pointer"]] = key
                self.state["queue.pointer"] = (self.state["queue.pointer"] + 1) % len(
                    self.state["queue.keys"]
                )

    def view(self, rows: np.ndarray, k: int) -> Tensor:
        """View k of some images in the epoch of this step: (n, 3, 8, 8)."""
        s, epoch, views = self.setting, self.step // self.per_epoch, []
        for row in rows:
            words = (s.seed, int(row) + self.first_id, epoch, k)
            image = torch.from_numpy(self.images[row]).double().permute(2, 0, 1) / 255
            image = image.flip(2) if uniform(*words, FLIP, 0) < 0.5 else image
            image = (image * (0.5 + uniform(*words, FACTORS, 0))).clamp(0, 1)
            views.append((image - s.mean) / s.std)
        return torch.stack(views)

    def _losses(self, w: dict[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
        """Losses and metrics over the global batch, and its embeddings of the first view."""
        s, rows, outs, keys = self.setting, self.order(self.step), [], []
        for start in range(0, s.global_batch, s.micro):
            views = [self.view(rows[start : start + s.micro], k) for k in (0, 1)]
            torch.manual_seed(chain(DRAWS, s.seed, self.step, start) >> 1)
            if s.method == "mocov2":
                outs.append(self._student(w, views[0]))
                shuffle = torch.cat([self._shuffle(i) for i in range(start, start + s.micro, s.span or 1)])
                shuffled = F.normalize(self._teacher(w, views[1][shuffle]), dim=1)
                keys.append(torch.empty_like(shuffled).index_copy(0, shuffle, shuffled))
            elif s.method == "byol":
                outs.append(torch.stack([self._student(w, view) for view in views], dim=1))
                keys.append(torch.stack([self._teacher(w, view) for view in views], dim=1))
            else:
                outs.append(torch.stack(self._student(w, torch.cat(views)).chunk(2), dim=1))
        out = torch.cat(outs)
        if s.method == "mocov2":
            self._keys = torch.cat(keys)
            return self._info_nce(out, self._keys, w["queue.keys"]), out.detach()
        losses = self._byol(out, torch.cat(keys)) if s.method == "byol" else self._nt_xent(out)
        return losses, out[:, 0].detach()

    def _shuffle(self, start: int) -> Tensor:
        """Places in the micro-batch that the span at `start` of the global batch takes its images from."""
        s = self.setting
        assert s.span
        order = permutation(s.span, SHUFFLE, s.seed, self.step, start // s.span)
        return torch.tensor(order) + start % s.micro

    def _info_nce(self, out: Tensor, keys: Tensor, queue: Tensor) -> dict[str, Tensor]:
        q = F.normalize(out, dim=1)
        positive = (q * keys).sum(1, keepdim=True)
        logits = torch.cat([positive, q @ queue.T], dim=1)
        return {
            "loss": -(logits / self.setting.temperature).log_softmax(1)[:, 0].mean(),
            "accuracy": (logits[:, :1] > logits[:, 1:]).all(1).double().mean(),
            "positive_cosine": positive.mean(),
        }

    def _byol(self, out: Tensor, keys: Tensor) -> dict[str, Tensor]:
        cosine = F.cosine_similarity(out, keys.flip(1), dim=2)  # (B, 2)
        return {"loss": (2 - 2 * cosine).sum(1).mean(), "positive_cosine": cosine.mean()}

    def _nt_xent(self, out: Tensor) -> dict[str, Tensor]:
        z = F.normalize(out, dim=2).transpose(0, 1).flatten(0, 1)  # (2B, d), view 0 first
        logits = (z @ z.T / self.setting.temperature).fill_diagonal_(-math.inf)
        positive = torch.arange(len(z)).roll(len(out))
        return {
            "loss": F.cross_entropy(logits, positive),
            "accuracy": (logits.argmax(1) == positive).double().mean(),
            "positive_cosine": F.cosine_similarity(out[:, 0], out[:, 1]).mean(),
        }

    def _student(self, w: dict[str, Tensor], x: Tensor) -> Tensor:
        h = self._mlp(w, "projector", self._encoder(w, "encoder", x))
        return self._mlp(w, "predictor", h) if self.setting.method == "byol" else h

    def _teacher(self, w: dict[str, Tensor], x: Tensor) -> Tensor:
        with torch.no_grad():
            return self._mlp(w, "teacher.1", self._encoder(w, "teacher.0", x))

    def _encoder(self, w: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
        x = F.conv2d(x, w[f"{name}.conv.weight"], stride=2)
        h = F.relu(self._norm(w, f"{name}.norm", x)).mean((2, 3))
        return h * F.dropout(torch.ones(h.shape), DROPOUT)

    def _mlp(self, w: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
        """Layers by the numbers that they have in the method: SimCLR's projector ends with a norm of its own."""
        simclr, normed = self.setting.method == "simclr", self.setting.method != "mocov2"
        name = f"{name}.0" if simclr else name
        x = F.linear(x, w[f"{name}.0.weight"], w.get(f"{name}.0.bias"))
        x = F.relu(self._norm(w, f"{name}.1", x) if normed else x)
        last = f"{name}.{3 if normed else 2}"
        x = F.linear(x, w[f"{last}.weight"], w.get(f"{last}.bias"))
        return self._norm(w, f"{name[:-2]}.1", x) if simclr else x

    def _norm(self, w: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
        """Group j: samples [j g, (j+1) g) of all views in x, a micro-batch of each."""
        group = self.setting.group
        by_group = x.unflatten(0, (-1, self.setting.micro // group, group))  # (views, groups, g, C, ...)
        over = [0, 2, *range(4, by_group.dim())]
        count = by_group[:, 0, :, 0].numel()
        var, mean = torch.var_mean(by_group, over, correction=0, keepdim=True)
        moments = (v.detach().reshape(-1, x.shape[1]) for v in (mean, var * count / (count - 1)))
        self._moments.setdefault(name, []).extend(zip(*moments))
        y = ((by_group - mean) / (var + 1e-5).sqrt()).flatten(0, 2)
        shape = (1, -1) + (1,) * (x.dim() - 2)
        bias = w.get(f"{name}.bias")
        return y * w[f"{name}.weight"].view(shape) + (0 if bias is None else bias.view(shape))
