import pytest
import torch
from torch import nn

from vergence.methods.parts import ema


def linear(weight: torch.Tensor) -> nn.Module:
    module = nn.Linear(1, 1, bias=False)
    module.weight = nn.Parameter(weight)
    return module


@pytest.mark.parametrize("student_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("momentum", [0.99, 0.996, 0.9999])
def test_thousand_steps_move_by_the_exact_fraction(momentum: float, student_dtype: torch.dtype) -> None:
    """A bf16 teacher moves .02 to .22 of the way here; an fp32 one all of it, whatever the student's type."""
    generator = torch.Generator().manual_seed(0)
    start = (0.05 * torch.randn(10_000, generator=generator)).to(student_dtype)
    teacher = ema.teacher_of(linear(start))
    goal = (start + 0.005 * torch.randn(10_000, generator=generator)).to(student_dtype)
    student = linear(goal)
    for _ in range(1000):
        ema.update(teacher, student, momentum)
    moved = (teacher.weight.double() - start.double()).norm()
    exact = (1 - momentum**1000) * (goal.double() - start.double()).norm()
    assert (moved / exact).item() == pytest.approx(1, abs=2e-3)
    assert teacher.weight.dtype == torch.float32


def test_teacher_is_a_frozen_copy_with_its_own_running_statistics() -> None:
    student = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    teacher = ema.teacher_of(student)
    assert all(torch.equal(t, s) for t, s in zip(teacher.parameters(), student.parameters(), strict=True))
    assert not any(p.requires_grad for p in teacher.parameters())
    assert all(p.requires_grad for p in student.parameters())
    student(torch.randn(8, 3) + 5)
    ema.update(teacher, student, momentum=0.0)
    assert (teacher[1].running_mean == 0).all()
