"""The tokens of texts: pairs of bytes, learned from the training set's captions when a run begins.

Byte pair encoding (Sennrich et al. 2016, arXiv:1508.07909) over bytes, of lower case as in CLIP, by `tokenizers`. Every
commit carries it, for its weights mean nothing with another one: a run goes on, is forked, moved and asked with its own.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from vergence.platform.data.captions import Captions
from vergence.platform.data.config import BYTES
from vergence.platform.data.decode import BadSample
from vergence.platform.data.modality import TEXT
from vergence.platform.data.plan import Plan
from vergence.platform.data.progress import Bar
from vergence.platform.data.ragged import Ragged
from vergence.platform.data.read import Reader
from vergence.platform.errors import UserError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

IN_MANIFEST = "vocabulary"
TEXTS = 20_000  # that are read, where they are the samples' own ...
NEIGHBOURS = 64  # ... so many in a row, which come together from a store
LONGEST = 4096  # bytes of a text that teach


@dataclass(frozen=True)
class Vocabulary:
    """json: as `tokenizers` writes it."""

    json: str

    @classmethod
    def of(cls, manifest: Mapping[str, Any]) -> "Vocabulary | None":
        """That of a commit; None: its texts are bytes."""
        return cls(manifest[IN_MANIFEST]) if IN_MANIFEST in manifest else None

    @property
    def size(self) -> int:
        """Tokens are below it."""
        return len(json.loads(self.json)["model"]["vocab"])

    def encode(self, texts: Ragged) -> Ragged:
        """Texts in UTF-8, rows of uint8 -> their tokens, rows of int32."""
        tokenizer = _tokenizer(self.json)
        pieces = np.split(texts.flat, np.cumsum(texts.lengths)[:-1])
        return Ragged.of(
            np.array(tokenizer.encode(piece.tobytes().decode()).ids, np.int32) for piece in pieces
        )


def learned(texts: Iterable[str], size: int) -> Vocabulary:
    """Of at most `size` tokens, 256 of which are the bytes. Raises UserError: `tokenizers` is not there."""
    library = _library()
    tokenizer = library.Tokenizer(library.models.BPE())
    tokenizer.normalizer = library.normalizers.Sequence(
        [library.normalizers.NFC(), library.normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = library.decoders.ByteLevel()
    alphabet = library.pre_tokenizers.ByteLevel.alphabet()
    trainer = library.trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return Vocabulary(tokenizer.to_str())


def of_captions(captions: Captions, size: int) -> Vocabulary:
    """Learned from every template with every name."""
    templates = range(len(captions.templates))
    return learned((captions.of(label, t) for label in range(len(captions.names)) for t in templates), size)


def of_samples(reader: Reader, plan: Plan, size: int) -> Vocabulary:
    """Learned from the texts of training samples, spread over the whole set."""
    positions = np.arange(plan.num_training)
    parts = np.array_split(positions, -(-min(TEXTS, len(positions)) // NEIGHBOURS))
    chosen = [plan.training_ids(part[:NEIGHBOURS]) for part in parts]
    return learned(_texts(reader, chosen), size)


def _texts(reader: Reader, chosen: Iterable[np.ndarray]) -> Iterator[str]:
    some = [*chosen]
    with Bar("reading texts for their tokens", sum(map(len, some)), enabled=True) as advance:
        for ids in some:
            for parts in reader.field(ids, TEXT):
                if not isinstance(parts, BadSample):
                    yield parts[""].tobytes()[:LONGEST].decode(errors="ignore")
            advance(len(ids))


@lru_cache(maxsize=4)
def _tokenizer(text: str) -> "Tokenizer":
    found: Tokenizer = _library().Tokenizer.from_str(text)
    return found


def _library() -> ModuleType:
    try:
        import tokenizers
    except ImportError:
        raise UserError(
            "data.vocabulary: tokens of more than a byte need tokenizers: pip install 'vergence[text]'; "
            f"{BYTES}, bytes alone, need nothing"
        ) from None
    return tokenizers
