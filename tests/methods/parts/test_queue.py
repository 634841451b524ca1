import pytest
import torch

from vergence.methods.parts.queue import Queue


def rows(first: int, count: int) -> torch.Tensor:
    return torch.arange(first, first + count, dtype=torch.float32)[:, None].repeat(1, 3)


def test_starts_with_unit_rows() -> None:
    torch.testing.assert_close(Queue(50, 8).keys.norm(dim=1), torch.ones(50))


@pytest.mark.parametrize("batch", [1, 2, 3, 5, 7, 10, 12])
def test_holds_the_newest_rows_whatever_the_batch(batch: int) -> None:
    queue, size = Queue(5, 3), 5
    for call in range(6):
        queue.enqueue(rows(call * batch, batch))
        total = (call + 1) * batch
        assert int(queue.pointer) == total % size
        newest = queue.keys[:, 0].roll(-int(queue.pointer)).tolist()[-min(total, size) :]
        assert newest == list(range(max(0, total - size), total))  # oldest first


def test_keys_and_pointer_are_state() -> None:
    queue, copy = Queue(5, 3), Queue(5, 3)
    queue.enqueue(rows(0, 7))
    copy.load_state_dict(queue.state_dict())
    for each in (queue, copy):
        each.enqueue(rows(7, 2))
    assert torch.equal(queue.keys, copy.keys)


def test_gradient_does_not_enter() -> None:
    queue = Queue(5, 3)
    queue.enqueue(rows(0, 2).requires_grad_())
    assert not queue.keys.requires_grad
