import pytest
import torch

from vergence.methods.parts.forwarding import embed_views


@pytest.mark.parametrize(("how", "rows"), [("joint", [6]), ("per_view", [2, 2, 2])])
def test_views_come_out_in_order_after_one_or_several_forwards(how: str, rows: list[int]) -> None:
    views = [torch.arange(6, dtype=torch.float32).view(2, 3, 1, 1) + 100 * number for number in range(3)]
    seen = []

    def network(images: torch.Tensor) -> torch.Tensor:
        seen.append(len(images))
        return images.flatten(1)

    z_bvd = embed_views(network, views, how)
    assert seen == rows
    assert z_bvd.shape == (2, 3, 3)
    for number, view in enumerate(views):
        assert torch.equal(z_bvd[:, number], view.flatten(1))
