"""Zero-shot: the class of an image is the one whose name, put into words, is nearest to it.

Radford et al. 2021, arXiv:2103.00020, sections 3.1.2 and 3.1.4: a class stands where the mean of its captions' unit
embeddings points to, one caption a template.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from vergence.methods.method import ReadsText
from vergence.platform.data.captions import Captions, in_bytes
from vergence.platform.data.modality import MODALITIES, TEXT
from vergence.platform.data.vocabulary import Vocabulary
from vergence.platform.encoders.encoder import CPU
from vergence.platform.evaluate.definitions import ZERO_SHOT, Definition
from vergence.platform.evaluate.protocols import Examples, Scores
from vergence.platform.evaluate.sweep import evaluating

TEXTS = 512  # embedded at a time, about


class ZeroShot:
    """How many images a method tells by the captions of their classes; it has seen no image of a class then, only words.

    Captions that it was trained with are labels: the figure says then that the method works, not what it makes of
    classes that it does not know.
    """

    def __init__(
        self,
        method: ReadsText,
        captions: Captions,
        device: torch.device,
        vocabulary: Vocabulary | None = None,
    ) -> None:
        """vocabulary: of the method's texts; None: bytes."""
        self.method, self.captions, self.device, self.vocabulary = method, captions, device, vocabulary

    @torch.no_grad()
    def __call__(
        self, features: NDArray[Any], autocast: Callable[[], AbstractContextManager[Any]] = nullcontext
    ) -> NDArray[np.int64]:
        """The class (n,) that each image is nearest to; features: (n, dim) of the encoder."""
        assert isinstance(self.method, nn.Module)
        with autocast(), evaluating(self.method):
            z = self.method.embed_images(torch.as_tensor(features, device=self.device))
            classes = torch.cat([self._directions(texts) for texts in self._texts()])
        nearest: NDArray[np.int64] = (z.float() @ classes.T).argmax(dim=1).cpu().numpy()
        return nearest

    def _texts(self) -> Iterator[Mapping[str, Tensor]]:
        """Captions of some classes, those of a class together."""
        templates, names = self.captions
        some = max(1, TEXTS // len(templates))
        for first in range(0, len(names), some):
            of = [
                self.captions.of(label, template)
                for label in range(first, min(first + some, len(names)))
                for template in range(len(templates))
            ]
            texts = in_bytes(of) if self.vocabulary is None else self.vocabulary.encode(in_bytes(of))
            parts = MODALITIES[TEXT].collate({"": texts})
            yield {TEXT + end: torch.from_numpy(part).to(self.device) for end, part in parts.items()}

    def _directions(self, fields: Mapping[str, Tensor]) -> Tensor:
        """(classes, d) unit vectors."""
        t = F.normalize(self.method.embed_text(fields).float(), dim=1)
        return F.normalize(t.unflatten(0, (-1, len(self.captions.templates))).mean(dim=1), dim=1)


class ByNames:
    """Zero-shot as a protocol: of one encoder, whose method has its final weights."""

    def __init__(self, method: ReadsText, captions: Captions, vocabulary: Vocabulary | None = None) -> None:
        self.method, self.captions, self.vocabulary = method, captions, vocabulary
        asked = {"templates": captions.templates, "classes": captions.names}
        self.definition: Definition = ZERO_SHOT._replace(fixed={**ZERO_SHOT.fixed, **asked})

    def run(self, bank: Examples, queries: Examples, device: torch.device = CPU) -> Scores:
        """As `EvaluationProtocol`; labels are numbers of the captions' names. The bank is not looked at."""
        if not len(queries.rows):
            raise ValueError("there are no queries")
        assert isinstance(self.method, nn.Module)
        self.method.to(device)
        nearest = ZeroShot(self.method, self.captions, device, self.vocabulary)(queries.rows)
        num_classes = len(self.captions.names)
        return Scores(nearest == queries.labels, {"classes": num_classes}, chance=1 / num_classes)
