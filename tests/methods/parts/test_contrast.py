import pytest
import torch
from small_methods import normal

from vergence.methods.parts.contrast import against, info_nce, scores


def test_negatives_of_each_anchor_and_of_all_are_scored_alike() -> None:
    anchors, positives, negatives = normal(4, 5), normal(4, 5, seed=1), normal(7, 5, seed=2)
    shared = scores(anchors, positives, negatives, 0.3)
    own = scores(anchors, positives, negatives.repeat(4, 1, 1), 0.3)
    torch.testing.assert_close(own, shared)
    for i in range(4):
        expected = [float(anchors[i] @ key) / 0.3 for key in (positives[i], *negatives)]
        assert shared[i].tolist() == pytest.approx(expected)


def test_a_tie_is_a_miss() -> None:
    anchors = torch.eye(3)
    assert against(anchors, anchors, torch.ones(2, 3) / 2, 0.1)[1] == 1
    assert against(anchors, anchors, anchors, 0.1)[1] == 0


def test_what_is_left_out_has_no_weight() -> None:
    logits = torch.tensor([[1.0, 2.0, float("-inf")]])
    loss, _ = info_nce(logits, torch.tensor([1]))
    torch.testing.assert_close(loss, info_nce(logits[:, :2], torch.tensor([1]))[0])
