"""Nine shuffled pieces of a picture (Misra and van der Maaten 2019, arXiv:1912.01991, PIRL; as in PyContrast's code)."""

import torch
from torch import Tensor, nn

from .draws import words
from .heads import mlp
from .norms import NormName

GRID = 3
PIECES = GRID * GRID
SHARE = 64 / 85  # side of a piece / side of its cell


def pieces(images: Tensor, seed: Tensor, ids: Tensor, progress: float) -> Tensor:
    """(n, 3, S, S) -> (9 n, 3, p, p), piece by piece: one from each cell of a grid of 3 x 3, at a place of its own.

    Places are a hash of seed, sample and progress.
    """
    n, _, side, _ = images.shape
    cell = side // GRID
    size = max(1, round(cell * SHARE))
    shift = words(seed, ids, 2 * PIECES, progress) % (cell - size + 1)
    row, column = (
        torch.arange(n, device=images.device)[:, None, None],
        torch.arange(size, device=images.device),
    )
    cut = []
    for number in range(PIECES):
        top = number // GRID * cell + shift[:, 2 * number, None] + column
        left = number % GRID * cell + shift[:, 2 * number + 1, None] + column
        cut.append(images[row, :, top[:, :, None], left[:, None, :]].permute(0, 3, 1, 2))
    return torch.cat(cut).contiguous(memory_format=torch.channels_last)


class JigsawHead(nn.Module):
    """Representations of nine pieces, projected one by one, in an order of each sample's own, become one embedding."""

    def __init__(self, dim: int, hidden_dim: int, embed_dim: int, norm: NormName) -> None:
        super().__init__()
        self.each = mlp((dim, hidden_dim, embed_dim), norm=norm, hidden_bias=True, last_bias=True)
        self.all = nn.Linear(PIECES * embed_dim, embed_dim)

    def forward(self, h: Tensor, seed: Tensor, ids: Tensor, progress: float) -> Tensor:
        """(9 n, dim), piece by piece -> (n, embed_dim)."""
        z = torch.stack(self.each(h).chunk(PIECES), dim=1)  # (n, 9, d)
        order = words(seed, ids, PIECES, progress, stream=1).argsort(dim=1)
        z = z.gather(1, order[..., None].expand_as(z)).flatten(1)
        embedding: Tensor = self.all(z)
        return embedding
