"""A share as micro-batches, each made just before its forward: of the views no more is held than one."""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vergence.methods.method import Batch, num_large
from vergence.platform.augment.parcel import Parcel
from vergence.platform.augment.views import Views
from vergence.platform.data.share import Share


class Micros:
    """The micro-batches of a share by number; the same one is the same whenever it is made.

    Args:
        share: of one rank and step.
        size: samples of a micro-batch, a divisor of the share.
        views: makes the views, on this device; unused where the share has no pictures.
        epoch: from 0. progress: of the step, in [0, 1).
        shuffle: the permutation of the micro-batch that begins at a place of the share, or None.
        device: of the batches.
    """

    def __init__(
        self,
        share: Share,
        size: int,
        *,
        views: Views,
        epoch: int,
        progress: float,
        shuffle: Callable[[int], Tensor | None],
        device: torch.device,
    ) -> None:
        self.share, self.size, self.views, self.epoch = share, size, views, epoch
        self.progress, self.shuffle, self.device = progress, shuffle, device
        self._sent: Callable[[], Batch] | None = None  # the first micro-batch, if it was begun

    def __len__(self) -> int:
        return len(self.share.ids) // self.size

    def __iter__(self) -> Iterator[Batch]:
        return map(self.__getitem__, range(len(self)))

    def begin(self) -> None:
        """Send the first micro-batch: what is left to do when it is asked for is done by the device."""
        self._sent = self._send(0)

    def __getitem__(self, number: int) -> Batch:
        """One copy to the device, and nothing that waits for it."""
        sent, self._sent = self._sent, None
        return sent() if sent is not None and number == 0 else self._send(number)()

    def _send(self, number: int) -> Callable[[], Batch]:
        """All that the host does for a micro-batch; the rest of it."""
        start = number * self.size
        rows = slice(start, start + self.size)
        ids = np.array(self.share.ids[rows])
        parcel = Parcel(self.device)
        pictures = self.share.pictures
        views = pictures and self.views.prepare(pictures.part(rows), ids, self.epoch, parcel)
        rest = parcel.put(
            Batch(
                views=(),
                ids=torch.from_numpy(ids),
                fields={name: _tensor(field[rows]) for name, field in self.share.fields.items()},
                geometry=self._geometry(rows),
                shuffle=self.shuffle(start),
                num_large=num_large(self.views.sizes),
                progress=self.progress,
            )
        )
        parcel.send()
        return lambda: rest()._replace(views=views() if views else [])

    def _geometry(self, rows: slice) -> list[Tensor]:
        pictures = self.share.pictures
        return [] if pictures is None else [_tensor(each) for each in pictures.geometry[rows].swapaxes(0, 1)]


def _tensor(array: NDArray[np.generic]) -> Tensor:
    return torch.from_numpy(np.require(array, requirements="W"))
