"""One pass of an encoder over given samples: what it makes of them in eval mode, each rank its part."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vergence.methods import collectives
from vergence.platform.data.decode import MAX_PIXELS
from vergence.platform.data.index import Index
from vergence.platform.data.read import KEPT
from vergence.platform.data.remote import Access
from vergence.platform.encoders.images import shard_source, stream_images

BATCH = 256

Ids = NDArray[np.int64]
Images = NDArray[np.uint8]


class Sweep:
    """`for ids, h in sweep(encoder)`: representations of this rank's samples, as often as it is asked.

    Rank r of R takes ids[r::R]. Samples that cannot be read are left out.
    """

    def __init__(
        self,
        index: Index,
        ids: Ids,
        *,
        size: int,
        mean: Sequence[float],
        std: Sequence[float],
        device: torch.device,
        threads: int,
        max_pixels: int = MAX_PIXELS,
        access: Access = KEPT,
        keep: bool = False,
    ) -> None:
        """size: side in pixels of what the encoder sees.  mean, std: RGB, of pixels in [0, 1].

        threads: how many read and resize.  access: how shards in a store are read.
        keep: hold the resized images in memory (3 size² bytes each), read here and once; otherwise each pass reads them
        again, with a bounded number ahead.
        """
        self.index, self.device = index, device
        self.ids = ids[collectives.rank() :: collectives.world_size()]
        # samples of this rank that cannot be read, known after the first pass
        self.num_bad: int | None = None
        self._size, self._threads = size, threads
        self._open_source = shard_source(index, max_pixels, access)
        self._mean = torch.tensor(mean, device=device).view(3, 1, 1) * 255
        self._std = torch.tensor(std, device=device).view(3, 1, 1) * 255
        self._kept = self._in_memory() if keep else None

    def __call__(
        self, encoder: nn.Module, autocast: Callable[[], AbstractContextManager[Any]] = nullcontext
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of (ids (n,) int64, h (n, dim) float32), on the device, in the order of the ids. Not collective.

        Gradients are off and the encoder is in eval mode while a batch is embedded, and neither when it is handed over.
        """
        for ids, images in self._read() if self._kept is None else self._kept:
            yield torch.from_numpy(ids).to(self.device), self._embed(encoder, images, autocast)

    def _read(self) -> Iterator[tuple[Ids, Images]]:
        num_good = 0
        for ids, images in stream_images(
            self._open_source, self.ids, self._size, batch=BATCH, threads=self._threads
        ):
            num_good += len(ids)
            yield ids, images
        self.num_bad = len(self.ids) - num_good

    def _in_memory(self) -> list[tuple[Ids, Images]]:
        """All that can be read, in whole batches."""
        parts = list(self._read())
        if not parts:
            return []
        ids, images = (np.concatenate(arrays) for arrays in zip(*parts))
        return [(ids[i : i + BATCH], images[i : i + BATCH]) for i in range(0, len(ids), BATCH)]

    def _embed(
        self, encoder: nn.Module, images: Images, autocast: Callable[[], AbstractContextManager[Any]]
    ) -> Tensor:
        with torch.no_grad(), autocast(), evaluating(encoder):
            pixels = torch.from_numpy(images).to(self.device)
            x = pixels.permute(0, 3, 1, 2).float().sub_(self._mean).div_(self._std)
            h: Tensor = encoder(x).float()
            return h


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Eval mode; afterwards each submodule is in the mode that it was in."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training
