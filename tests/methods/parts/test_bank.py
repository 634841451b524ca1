import math

import pytest
import torch
import torch.nn.functional as F

from vergence.methods.parts.bank import Bank


def bank(num_ids: int = 50, dim: int = 8, seed: int = 0) -> Bank:
    torch.manual_seed(seed)
    return Bank(num_ids, dim)


def test_starts_with_rows_of_length_about_one() -> None:
    rows = bank(4000, 128).rows
    assert rows.abs().max().item() <= 1 / math.sqrt(128 / 3)
    assert rows.norm(dim=1).mean().item() == pytest.approx(1, abs=0.01)


def test_a_row_moves_to_the_unit_mean_of_itself_and_the_vector() -> None:
    memory = bank()
    old, ids, new = memory.rows.clone(), torch.tensor([7, 3]), F.normalize(torch.randn(2, 8), dim=1)
    memory.update(ids, new, momentum=0.25)
    for i, id in enumerate(ids.tolist()):
        mixed = 0.25 * old[id] + 0.75 * new[i]
        torch.testing.assert_close(memory.rows[id], mixed / mixed.norm())
    others = torch.ones(50, dtype=torch.bool)
    others[ids] = False
    assert torch.equal(memory.rows[others], old[others])


def test_of_an_id_that_comes_twice_the_later_vector_counts_once() -> None:
    memory = bank()
    old, new = memory.rows.clone(), F.normalize(torch.randn(4, 8), dim=1)
    memory.update(torch.tensor([5, 2, 5, 2]), new, momentum=0.5)
    for id, i in ((5, 2), (2, 3)):
        torch.testing.assert_close(memory.rows[id], F.normalize(old[id] + new[i], dim=0))


def test_draws_follow_from_seed_id_and_progress_alone() -> None:
    memory, ids = bank(), torch.arange(20)
    drawn = memory.draw(ids, 30, 0.125)
    assert torch.equal(memory.draw(ids[7:9], 30, 0.125), drawn[7:9])
    assert torch.equal(memory.draw(ids, 10, 0.125), drawn[:, :10])
    for other in (memory.draw(ids, 30, 0.126), bank(seed=1).draw(ids, 30, 0.125)):
        assert (other == drawn).double().mean() < 0.1
    again = bank(seed=1)
    again.load_state_dict(memory.state_dict())
    assert torch.equal(again.draw(ids, 30, 0.125), drawn)


def test_draws_are_uniform_and_independent() -> None:
    memory = bank(num_ids=50)
    drawn = memory.draw(torch.arange(400), 500, 0.3)
    assert (int(drawn.min()), int(drawn.max())) == (0, 49)
    expected = 400 * 500 / 50
    chi_square = ((drawn.flatten().bincount(minlength=50) - expected) ** 2 / expected).sum().item()
    assert chi_square < 90  # 49 degrees of freedom: 1 in 3,000
    for a, b in ((drawn[:-1], drawn[1:]), (drawn[:, :-1], drawn[:, 1:])):
        assert (a == b).double().mean().item() == pytest.approx(1 / 50, abs=0.002)


def test_gradient_does_not_enter() -> None:
    memory = bank()
    memory.update(torch.tensor([1]), torch.randn(1, 8, requires_grad=True), 0.5)
    assert not memory.rows.requires_grad
