"""Predict the codes to come from those that were: contexts, candidates and the loss of predictive coding.

van den Oord et al. 2018, arXiv:1807.03748. A sample is a sheaf of lanes of one length: a sound or a text is a single
lane, an image has a lane for each column of its patches, of which each row is a step.

Shape suffixes: b = samples on this rank, B = b * world_size, l = lanes, t = steps, k = distances predicted, d = width.
"""

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import collectives
from .contrast import hits
from .draws import words
from .precision import full

Policy = Literal["all", "own_sequence", "other_sequences", "not_current"]
POLICY = (
    "What a code to come is told from: all codes of the global batch; those of its own lane; of all other lanes; "
    "or all but the one at the present step."
)


NEGATIVES = 1 << 8  # streams of draws from here on


class Recurrent(nn.Module):
    """A GRU along each lane: (b, l, t, d) -> (b, l, t, dim)."""

    def __init__(self, width: int, dim: int) -> None:
        super().__init__()
        self.gru = nn.GRU(width, dim, batch_first=True)

    def forward(self, z_bltd: Tensor) -> Tensor:
        contexts, _ = self.gru(z_bltd.flatten(0, 1))
        return contexts.unflatten(0, z_bltd.shape[:2])


class Masked(nn.Module):
    """Residual convolutions over lanes and the steps so far, a PixelCNN: (b, l, t, d) -> (b, l, t, d).

    Hénaff et al. 2019, arXiv:1905.09272, appendix (listing); it sees 5 steps back and as many lanes to each side.
    """

    def __init__(self, width: int, hidden: int, blocks: int = 5) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(width, hidden, 1),
                nn.ReLU(),
                nn.Conv2d(hidden, hidden, (3, 1), padding=(1, 0)),  # a step, three lanes
                nn.ZeroPad2d((1, 0, 0, 0)),  # one step more before the first
                nn.Conv2d(hidden, hidden, (1, 2)),  # the step before and this one
                nn.ReLU(),
                nn.Conv2d(hidden, width, 1),
            )
            for _ in range(blocks)
        )

    def forward(self, z_bltd: Tensor) -> Tensor:
        x = z_bltd.permute(0, 3, 1, 2)
        for block in self.blocks:
            x = x + block(x)
        return F.relu(x).permute(0, 2, 3, 1)


class Rules(NamedTuple):
    """What predictions are told from.

    first: distance of the nearest step that is predicted.  num_negatives: drawn for each prediction, uniformly with
    replacement; a draw that the policy forbids is left out.  None: every candidate.
    """

    first: int
    policy: Policy
    num_negatives: int | None = None


class Counter(NamedTuple):
    """What draws follow from, see `draws.words`.  ids: (b,)."""

    seed: Tensor
    ids: Tensor
    progress: float


class Scored(NamedTuple):
    """Of this rank's predictions, 0-d; mean over distances.

    information: log of the number of candidates, less the loss; a lower bound of the mutual information, in nats.
    """

    loss: Tensor
    accuracy: Tensor
    information: Tensor


def check_length(num_steps: int, rules: Rules, distances: int) -> None:
    """Raises ValueError: sequences are too short for the distances."""
    last = rules.first + distances - 1
    if num_steps <= last:
        raise ValueError(
            f"a sequence of {num_steps} steps holds no prediction over {last}; lower method.steps or show more of it"
        )


def score(z_bltd: Tensor, p_bltkd: Tensor, steps_b: Tensor | None, rules: Rules, counter: Counter) -> Scored:
    """InfoNCE (eq. 4) of all predictions over each distance, whose mean is over those of all ranks. Collective.

    Args:
        z_bltd: codes, candidates and positives. p_bltkd: W_k c_t, what is expected at t + first, t + first + 1, ...
        steps_b: (b,) int64 how many codes of a sample are real; the others are neither predicted nor candidates.
            None: all are.
        rules, counter: which candidates there are, and how they are drawn.
    Raises ValueError: the sequences are too short for the distances.
    """
    check_length(z_bltd.shape[2], rules, p_bltkd.shape[3])
    candidates = _Candidates.of(full(z_bltd), steps_b, rules.policy)
    parts = [
        _score(candidates, full(p_bltkd[..., k, :]), rules.first + k, k, rules, counter)
        for k in range(p_bltkd.shape[3])
    ]
    return Scored(*(torch.stack(each).mean() for each in zip(*parts, strict=True)))


class _Candidates(NamedTuple):
    """Codes by place: those of a lane stand together, then those of a sample, of a rank.

    rows: (C, d).  real: (C,) bool, None: all.  own: places (b, l, t) of this rank's.
    """

    rows: Tensor
    real: Tensor | None
    own: Tensor

    @classmethod
    def of(cls, z_bltd: Tensor, steps_b: Tensor | None, policy: Policy) -> "_Candidates":
        rows, real = z_bltd.flatten(0, 2), None
        own = torch.arange(len(rows), device=rows.device).view(z_bltd.shape[:3])
        if steps_b is not None:
            real = (own[0, 0] < steps_b[:, None, None]).expand_as(own).flatten()
        if policy == "own_sequence":
            return cls(rows, real, own)
        if real is not None:
            real = collectives.gather(real.to(torch.uint8)).bool()
        return cls(collectives.gather(rows), real, own + len(rows) * collectives.rank())


def _score(
    candidates: _Candidates, p_bltd: Tensor, distance: int, number: int, rules: Rules, counter: Counter
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, accuracy and information of the predictions over one distance, the number-th."""
    num_steps = p_bltd.shape[2]
    anchors_blsd, now = p_bltd[:, :, : num_steps - distance], candidates.own[:, :, : num_steps - distance]
    now_a, then_a = now.flatten(), now.flatten() + distance
    if rules.num_negatives is not None:
        drawn = _drawn(candidates, now, distance, number, rules, counter)
        places = torch.cat([then_a[:, None], drawn], dim=1)  # (a, 1 + m)
        logits = (candidates.rows[places] @ anchors_blsd.flatten(0, 2)[:, :, None]).squeeze(2)
        target = torch.zeros_like(then_a)
    elif rules.policy == "own_sequence":
        lanes = candidates.rows.view(*p_bltd.shape)
        logits = (anchors_blsd @ lanes.transpose(2, 3)).flatten(0, 2)  # (a, T)
        places, target = _lane(now_a, num_steps)[:, None] + candidates.own[0, 0], then_a % num_steps
    else:
        logits = anchors_blsd.flatten(0, 2) @ candidates.rows.T  # (a, C)
        places, target = torch.arange(len(candidates.rows), device=now.device)[None], then_a
    allowed = _allowed(candidates, places, now_a[:, None], then_a[:, None], num_steps, rules.policy)
    logits = logits.masked_fill(~allowed, float("-inf"))
    loss_a = F.cross_entropy(logits, target, reduction="none")
    with torch.no_grad():
        counted = torch.ones_like(loss_a) if candidates.real is None else candidates.real[then_a].to(loss_a)
        weight_a = counted / collectives.mean(counted.sum()).clamp(
            min=1
        )  # a rank may have more than its share
        nats_a = allowed.sum(dim=1).to(loss_a).log() - loss_a
        accuracy, information = (hits(logits, target) * weight_a).sum(), (nats_a * weight_a).sum()
    return (loss_a * weight_a).sum(), accuracy, information


def _allowed(
    candidates: _Candidates, places: Tensor, now: Tensor, then: Tensor, num_steps: int, policy: Policy
) -> Tensor:
    """Bool, the shape of places and now broadcast: what the policy leaves, and always the positive."""
    allowed = torch.ones_like(places + now, dtype=torch.bool)
    if candidates.real is not None:
        allowed &= candidates.real[places]
    if policy == "not_current":
        allowed &= places != now
    elif policy == "other_sequences":
        allowed &= _lane(places, num_steps) != _lane(now, num_steps)
    return allowed | (places == then)


def _drawn(
    candidates: _Candidates, now: Tensor, distance: int, number: int, rules: Rules, counter: Counter
) -> Tensor:
    """Places (a, m) of negatives, never the positive's own; now: (b, l, s)."""
    b, num_lanes, num_steps = candidates.own.shape
    assert rules.num_negatives is not None
    count = num_lanes * num_steps * rules.num_negatives
    found = words(counter.seed, counter.ids, count, counter.progress, stream=NEGATIVES + number)
    found = found.view(b, num_lanes, num_steps, -1)[:, :, : now.shape[2]].flatten(0, 2)
    own = rules.policy == "own_sequence"
    start = _lane(now.flatten(), num_steps)[:, None] if own else 0
    places = start + found % ((num_steps if own else len(candidates.rows)) - 1)
    return places + (places >= now.flatten()[:, None] + distance).long()


def _lane(places: Tensor, num_steps: int) -> Tensor:
    """Where the lane of each place begins."""
    return places - places % num_steps
