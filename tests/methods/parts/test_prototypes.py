import math

import pytest
import torch
import torch.nn.functional as F
from small_methods import normal

from vergence.methods.parts.prototypes import Prototypes, cross_entropies, use


def test_scores_are_cosines_of_rows_that_start_as_unit_vectors() -> None:
    prototypes = Prototypes(5, 4)
    torch.testing.assert_close(prototypes.weight.norm(dim=1), torch.ones(4))
    prototypes, z = prototypes.double(), normal(2, 3, 5) * 7
    cosine = F.cosine_similarity(z[:, :, None], prototypes.weight, dim=-1)
    torch.testing.assert_close(prototypes(z), cosine)
    with torch.no_grad():
        prototypes.weight.mul_(3)  # what the optimiser makes of lengths does not act
    torch.testing.assert_close(prototypes(z), cosine)


def test_gradient_by_finite_differences() -> None:
    prototypes = Prototypes(4, 3).double()
    assert torch.autograd.gradcheck(
        lambda z, w: F.linear(F.normalize(z, dim=1), F.normalize(w, dim=1)),
        (normal(2, 4).requires_grad_(), prototypes.weight.detach().requires_grad_()),
    )
    assert torch.autograd.gradcheck(prototypes, normal(2, 4).requires_grad_())


def test_scores_stay_fp32_under_autocast() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert Prototypes(5, 4)(torch.randn(2, 5).bfloat16()).dtype == torch.float32


def test_cross_entropies_are_of_full_views_with_every_other_view() -> None:
    codes, log_p = normal(3, 2, 4).softmax(-1), normal(3, 4, 4, seed=1).log_softmax(-1)
    pairs = [(0, 1), (0, 2), (0, 3), (1, 0), (1, 2), (1, 3)]
    expected = torch.tensor(
        [[-(codes[i, t] * log_p[i, s]).sum().item() for t, s in pairs] for i in range(3)], dtype=torch.float64
    )
    torch.testing.assert_close(cross_entropies(codes, log_p), expected)


def test_use_is_1_for_even_and_0_for_a_single_prototype() -> None:
    assert use(torch.eye(4)).item() == pytest.approx(1)
    assert use(torch.eye(4)[:1].expand(8, 4)).item() == 0
    assert use(torch.eye(4)[:2]).item() == pytest.approx(math.log(2) / math.log(4))
