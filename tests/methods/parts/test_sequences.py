"""The loss of predictive coding against plain loops, its closed forms, its candidates on one rank and on several."""

import math
from typing import get_args

import numpy as np
import pytest
import torch
from ranks import run_ranks
from small_methods import normal
from torch import Tensor

from vergence.methods.parts.sequences import Counter, Masked, Policy, Recurrent, Rules, Scored, score

POLICIES: tuple[Policy, ...] = get_args(Policy)
B, L, T, K, D = 6, 2, 5, 2, 3
LENGTHS = torch.tensor([5, 4, 5, 1, 3, 5])  # of one, nothing can be predicted


def counter(n: int, first: int = 0, progress: float = 0.25) -> Counter:
    return Counter(torch.tensor(7), torch.arange(first, first + n), progress)


def scored(z: Tensor, p: Tensor, rules: Rules, steps: Tensor | None = None) -> Scored:
    return score(z, p, steps, rules, counter(len(z)))


def transcription(z: Tensor, p: Tensor, first: int, policy: Policy, steps: list[int]) -> tuple[float, float]:
    """Equation 4 in loops: the loss, and the mean log of the number of candidates less the loss."""
    b, lanes, length, distances, _ = p.shape
    means, bounds = [], []
    for k in range(distances):
        losses, nats = [], []
        for i in range(b):
            for lane in range(lanes):
                for t in range(length - first - k):
                    then = t + first + k
                    if then >= steps[i]:
                        continue
                    total, number, own = 0.0, 0, 0.0
                    for j in range(b):
                        for other in range(lanes):
                            for s in range(steps[j]):
                                same, here = (j, other) == (i, lane), (j, other, s) == (i, lane, then)
                                if not here and (
                                    (policy == "own_sequence" and not same)
                                    or (policy == "other_sequences" and same)
                                    or (policy == "not_current" and same and s == t)
                                ):
                                    continue
                                e = math.exp(float(z[j, other, s] @ p[i, lane, t, k]))
                                total, number, own = total + e, number + 1, e if here else own
                    losses.append(-math.log(own / total))
                    nats.append(math.log(number) - losses[-1])
        means.append(sum(losses) / len(losses))
        bounds.append(sum(nats) / len(nats))
    return sum(means) / distances, sum(bounds) / distances


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("first", [1, 2])
@pytest.mark.parametrize("ragged", [False, True])
def test_loss_equals_float64_transcription(policy: Policy, first: int, ragged: bool) -> None:
    z, p = normal(B, L, T, D), normal(B, L, T, K, D, seed=1)
    got = scored(z, p, Rules(first, policy), LENGTHS if ragged else None)
    loss, information = transcription(z, p, first, policy, LENGTHS.tolist() if ragged else [T] * B)
    assert got.loss.item() == pytest.approx(loss, abs=1e-10)
    assert got.information.item() == pytest.approx(information, abs=1e-10)


def test_closed_forms() -> None:
    nothing = torch.zeros(B, L, T, 1, D, dtype=torch.float64)
    lanes = B * L
    expected = {
        "all": lanes * T,
        "own_sequence": T,
        "other_sequences": 1 + (lanes - 1) * T,
        "not_current": lanes * T - 1,
    }
    for policy in POLICIES:
        got = scored(normal(B, L, T, D), nothing, Rules(1, policy))
        assert got.loss.item() == pytest.approx(math.log(expected[policy]), abs=1e-12)
        assert got.information.item() == pytest.approx(0, abs=1e-12)
        assert got.accuracy == 0
    codes = torch.eye(15, dtype=torch.float64).view(3, 1, 5, 15)
    picks = 7 * codes.roll(-1, dims=2)[:, :, :, None]
    got = scored(codes, picks, Rules(1, "all"))
    assert got.loss.item() == pytest.approx(0.012686, abs=1e-6)
    assert got.accuracy == 1


@pytest.mark.parametrize("policy", POLICIES)
def test_draws_estimate_the_loss_of_as_many_candidates_and_never_take_the_positive(policy: Policy) -> None:
    """A positive among its own negatives would leave a loss of ln 2 at least."""
    codes = torch.eye(15, dtype=torch.float64).view(3, 1, 5, 15)
    sure = 60 * codes.roll(-1, dims=2)[:, :, :, None]
    assert scored(codes, sure, Rules(1, policy, 300)).loss < 1e-9
    nothing = torch.zeros(3, 1, 5, 1, 15, dtype=torch.float64)
    loss = scored(codes, nothing, Rules(1, policy, 300)).loss.item()
    left = {"all": 1.0, "own_sequence": 1.0, "other_sequences": 10 / 14, "not_current": 13 / 14}[policy]
    assert loss == pytest.approx(math.log(1 + 300 * left), abs=0.02 if left < 1 else 1e-12)


def test_draws_follow_from_sample_and_progress() -> None:
    z, p, rules = normal(B, L, T, D), normal(B, L, T, K, D, seed=1), Rules(1, "all", 3)
    losses = [score(z, p, None, rules, counter(B, progress=at)).loss for at in (0.25, 0.25, 0.5)]
    assert losses[0] == losses[1] != losses[2]


def test_gradient_by_finite_differences() -> None:
    def loss(z: Tensor, p: Tensor) -> Tensor:
        return scored(z, p, Rules(1, "all"), torch.tensor([4, 2])).loss

    assert torch.autograd.gradcheck(
        loss, (normal(2, 1, 4, 3).requires_grad_(), normal(2, 1, 4, 2, 3, seed=1).requires_grad_())
    )


def test_a_sequence_that_is_too_short_is_refused_with_the_cure() -> None:
    with pytest.raises(ValueError, match=r"of 2 steps holds no prediction over 2; lower method\.steps"):
        scored(normal(2, 1, 2, 3), normal(2, 1, 2, 2, 3), Rules(1, "all"))


def of_a_rank(rank: int, world_size: int) -> dict[str, tuple[float, np.ndarray, np.ndarray]]:
    """Loss and gradients of a third or the half of the samples, by policy; one of them has few codes."""
    n = B // world_size
    part, found = slice(rank * n, (rank + 1) * n), {}
    for policy in POLICIES:
        for drawn in (None, 4):
            z = normal(B, L, T, D)[part].clone().requires_grad_()
            p = normal(B, L, T, K, D, seed=1)[part].clone().requires_grad_()
            loss = score(z, p, LENGTHS[part], Rules(1, policy, drawn), counter(n, rank * n)).loss
            loss.backward()
            found[f"{policy}-{drawn}"] = (loss.item(), z.grad.numpy(), p.grad.numpy())
    return found


@pytest.mark.parametrize("world_size", [2, 3])
def test_codes_that_are_not_real_leave_ranks_equal_to_one(world_size: int) -> None:
    alone, ranks = of_a_rank(0, 1), run_ranks(of_a_rank, world_size)
    for case, (loss, *gradients) in alone.items():
        assert np.mean([rank[case][0] for rank in ranks]) == pytest.approx(loss, abs=1e-12), case
        for i, gradient in enumerate(gradients, start=1):
            parts = np.concatenate([rank[case][i] for rank in ranks]) / world_size
            np.testing.assert_allclose(parts, gradient, rtol=0, atol=1e-12, err_msg=case)


@pytest.mark.parametrize("kind", [Recurrent, Masked])
def test_a_context_knows_nothing_of_what_comes(kind: type[Recurrent | Masked]) -> None:
    torch.manual_seed(0)
    context = kind(4, 8).double()
    z = normal(2, 3, 6, 4)
    z_then = z.clone()
    z_then[:, :, 3:] += 1
    before, after = context(z), context(z_then)
    assert torch.equal(before[:, :, :3], after[:, :, :3])
    assert (before[:, :, 3:] != after[:, :, 3:]).any(dim=-1).all()
    beside = z.clone()
    beside[:, 0, 0] += 1
    seen = (context(beside) != before)[:, 1, -1].any().item()
    assert seen == (kind is Masked)  # a GRU sums up its own lane
