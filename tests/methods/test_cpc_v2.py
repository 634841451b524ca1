"""CPC v2; the loss of one direction is tried in parts/test_sequences.py."""

import math

import pytest
import torch
from small_methods import FACTS, normal, patch_encoder, small_method, whole
from torch import Tensor

from vergence.methods.cpc_v2 import CPCV2, Codes, CPCV2Config, Direction
from vergence.methods.method import Batch
from vergence.methods.parts.patches import PatchAugmentation
from vergence.methods.parts.signals import Signal

PLAIN = PatchAugmentation()


def transcription(y: Tensor, p: Tensor, directions: list[Direction], skipped: int) -> float:
    """The listing's loss in loops: y (n, row, column, d); p (n, r, lane, step, k, d)."""
    n, side, _, _ = y.shape
    step_of: dict[Direction, tuple[int, int]] = {
        "down": (1, 0),
        "up": (-1, 0),
        "right": (0, 1),
        "left": (0, -1),
    }
    loss = 0.0
    for r, direction in enumerate(directions):
        down, right = step_of[direction]
        for k in range(p.shape[4]):
            losses, distance = [], skipped + 1 + k
            for i in range(n):
                for row in range(side):
                    for column in range(side):
                        there = row + distance * down, column + distance * right
                        if not all(0 <= place < side for place in there):
                            continue
                        lane, step = (column, row) if down else (row, column)
                        step = step if down + right > 0 else side - 1 - step
                        logits = [float(x @ p[i, r, lane, step, k]) for x in y.flatten(0, 2)]
                        own = float(y[i, there[0], there[1]] @ p[i, r, lane, step, k])
                        losses.append(math.log(sum(map(math.exp, logits))) - own)
            loss += sum(losses) / len(losses) / p.shape[4]
    return loss


@pytest.mark.parametrize("skipped", [0, 1])
def test_loss_equals_float64_transcription(skipped: int) -> None:
    directions: list[Direction] = ["left", "down", "up", "right"]
    method: CPCV2 = small_method("cpc_v2", directions=tuple(directions), skipped=skipped, steps=2)
    y, p = normal(2, 1, 4, 4, 5), normal(2, 4, 4, 4, 2, 5, seed=1)
    loss = method.criterion(Codes(y, p), (), whole(2)).loss
    assert loss.item() == pytest.approx(transcription(y[:, 0], p, directions, skipped), abs=1e-10)


@pytest.mark.parametrize("direction", ["down", "up", "right", "left"])
def test_each_direction_sees_only_what_it_has_passed(direction: Direction) -> None:
    method: CPCV2 = small_method("cpc_v2", directions=(direction,), patches=PLAIN)
    images = normal(2, 3, 4, 4)
    changed = images.clone()
    pixels = changed if direction in ("down", "up") else changed.mT
    pixels[:, :, 3 if direction in ("down", "right") else 0] += 1  # of the last step of patches alone
    before, after = (method(Batch([x], torch.arange(2))).p_brltkd for x in (images, changed))
    assert torch.equal(before[:, :, :, :2], after[:, :, :, :2])
    assert not torch.equal(before[:, :, :, 2], after[:, :, :, 2])


def test_closed_form_without_information_is_the_log_of_all_patches_a_direction() -> None:
    method: CPCV2 = small_method("cpc_v2")
    out = Codes(normal(3, 2, 3, 3, 5), torch.zeros(3, 4, 6, 3, 2, 5, dtype=torch.float64))
    losses = method.criterion(out, (), whole(3))
    assert losses.loss.item() == pytest.approx(4 * math.log(3 * 2 * 9), abs=1e-12)
    assert losses.information.item() == pytest.approx(0, abs=1e-12)


def test_gradient_by_finite_differences() -> None:
    method: CPCV2 = small_method("cpc_v2", directions=("up", "right"))

    def loss(y: Tensor, p: Tensor) -> Tensor:
        return method.criterion(Codes(y, p), (), whole(2)).loss

    inputs = normal(2, 1, 3, 3, 5).requires_grad_(), normal(2, 2, 3, 3, 2, 5, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(loss, inputs)


def test_targets_and_predictions_are_as_in_the_listing() -> None:
    method: CPCV2 = small_method("cpc_v2", patches=PLAIN, scale=0.1, steps=2)
    images = normal(2, 3, 4, 4)
    out = method(Batch([images], torch.arange(2)))
    grid = method.encoder.features(images).permute(0, 2, 3, 1)  # (b, row, column, d)
    torch.testing.assert_close(out.y_bvggd[:, 0], grid @ method.targets_of.weight.T)
    c = method.contexts[0](grid.transpose(1, 2))  # down: lanes are columns
    expected = 0.1 * (c @ method.predictions[0].weight.T).unflatten(-1, (2, 5))
    torch.testing.assert_close(out.p_brltkd[:, 0], expected)
    config = CPCV2Config()
    assert (config.target_dim, config.scale, config.skipped, config.steps) == (64, 0.1, 2, 1)
    assert config.directions == ("down", "up", "right", "left")


def test_only_patches_of_images_are_taken() -> None:
    signal = Signal("waves", channels=4, strides=(2,), inputs=1, normed=True)
    with pytest.raises(ValueError, match=r"cpc_v2 takes patches of images: encoder\.grid="):
        CPCV2(CPCV2Config(), signal, FACTS)
    assert CPCV2(CPCV2Config(), patch_encoder(), FACTS).needs.views is not None
