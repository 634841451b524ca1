"""Text made of classes: a sample's caption is a template with the name of its class."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vergence.platform.augment import rng
from vergence.platform.data.config import CLASS, DataConfig
from vergence.platform.data.index import Index
from vergence.platform.data.labels import read_names
from vergence.platform.data.ragged import Ragged
from vergence.platform.errors import UserError
from vergence.platform.store import folder_of

_CAPTION = 0xCA  # stream of random words: which template a sample gets

Ids = NDArray[np.int64]


class Captions(NamedTuple):
    """templates: with CLASS in each.  names: of the classes, by label; an underscore is written as a space."""

    templates: tuple[str, ...]
    names: tuple[str, ...]

    def drawn(self, labels: Ids, ids: Ids, epochs: Ids | int, seed: int) -> Ragged:
        """The caption of each sample in UTF-8, (n) rows of uint8: a function of seed, sample and epoch only.

        labels, ids: (n,).  epochs: (n,) or one for all.
        """
        chosen = rng.mix(_CAPTION, seed, ids, epochs) % np.uint64(len(self.templates))
        return in_bytes([self.of(int(label), int(t)) for label, t in zip(labels, chosen)])

    def of(self, label: int, template: int) -> str:
        return self.templates[template].replace(CLASS, self.names[label].replace("_", " "))


def in_bytes(texts: Sequence[str]) -> Ragged:
    """At least one text in UTF-8, as rows of uint8."""
    return Ragged.of(np.frombuffer(text.encode(), np.uint8) for text in texts)


def captions_of(config: DataConfig, index: Index) -> Captions | None:
    """What makes the text of these samples; None where it is their own (.txt).

    Raises UserError: a sample has no class, or a class no name.
    """
    if not config.captions:
        return None
    labels = index.labels(np.arange(len(index)))
    if labels is None or (labels < 0).any():
        missing = len(index) if labels is None else int((labels < 0).sum())
        raise UserError(
            f"data.captions: {missing:,} of {len(index):,} samples have no class (.cls) to make text of"
        )
    names = index.classes or read_names({folder_of(shard) for shard in index.shards})
    if names is None or labels.max() >= len(names):
        what = (
            "have no names"
            if names is None
            else f"go up to {labels.max()}, and classes.json names {len(names)}"
        )
        raise UserError(
            f"data.captions: the classes of {config.train} {what}; write classes.json, a list of their names in order, "
            "beside the shards"
        )
    return Captions(config.captions, tuple(names))
