import pytest
import torch

from vergence.methods.parts.forwarding import ViewForward, embed_views


@pytest.mark.parametrize(("how", "rows"), [("joint", [6]), ("per_view", [2, 2, 2])])
def test_views_come_out_in_order_after_one_or_several_forwards(how: ViewForward, rows: list[int]) -> None:
    views = [torch.arange(6, dtype=torch.float32).view(2, 3, 1, 1) + 100 * number for number in range(3)]
    seen: list[int] = []

    def network(images: torch.Tensor) -> torch.Tensor:
        seen.append(len(images))
        return images.flatten(1)

    z_bvd = embed_views(network, lambda h: h, views, how)
    assert seen == rows
    assert z_bvd.shape == (2, 3, 3)
    for number, view in enumerate(views):
        assert torch.equal(z_bvd[:, number], view.flatten(1))


@pytest.mark.parametrize(
    ("how", "encoded", "headed"),
    [
        ("joint", [(4, 8), (6, 4), (2, 2)], [12]),
        ("per_view", [(2, 8), (2, 8), (6, 4), (2, 2)], [2, 2, 6, 2]),
    ],
)
def test_views_of_one_size_share_a_forward_and_small_ones_always_do(
    how: ViewForward, encoded: list[tuple[int, int]], headed: list[int]
) -> None:
    sizes = [8, 8, 4, 4, 4, 2]
    views = [torch.full((2, 1, size, size), float(number)) for number, size in enumerate(sizes)]
    seen: list[tuple[int, int]] = []
    rows: list[int] = []

    def encoder(images: torch.Tensor) -> torch.Tensor:
        seen.append((len(images), images.shape[-1]))
        return images.mean((2, 3))

    def head(h: torch.Tensor) -> torch.Tensor:
        rows.append(len(h))
        return h * 10

    z_bvd = embed_views(encoder, head, views, how)
    assert (seen, rows) == (encoded, headed)
    assert z_bvd[:, :, 0].tolist() == [[0, 10, 20, 30, 40, 50]] * 2
