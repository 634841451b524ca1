"""The tokens of a text: pairs of bytes, learned from the training set's captions before the run.

Byte pair encoding (Sennrich et al. 2016, arXiv:1508.07909) over bytes, of lower case as in CLIP, by `tokenizers`. It is a
function of the captions alone; each commit names its digest, for weights mean nothing with another one.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vergence.platform.data.captions import Captions
from vergence.platform.data.config import BYTES, DataConfig
from vergence.platform.data.decode import BadSample
from vergence.platform.data.index import Index
from vergence.platform.data.modality import TEXT
from vergence.platform.data.ragged import Ragged
from vergence.platform.data.read import Reader
from vergence.platform.errors import UserError
from vergence.platform.files import read_mapping, write_atomic

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TEXTS = 20_000  # that are read, where they are the samples' own


@dataclass(frozen=True)
class Vocabulary:
    """json: as `tokenizers` writes it."""

    json: str

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.json.encode()).hexdigest()

    def encode(self, texts: Ragged) -> Ragged:
        """Texts in UTF-8, rows of uint8 -> their tokens, rows of int32."""
        tokenizer = _tokenizer(self.json)
        pieces = np.split(texts.flat, np.cumsum(texts.lengths)[:-1])
        return Ragged.of(
            np.array(tokenizer.encode(piece.tobytes().decode()).ids, np.int32) for piece in pieces
        )


def learned(texts: Iterable[str], size: int) -> Vocabulary:
    """Of at most `size` tokens, 256 of which are the bytes. Raises UserError: `tokenizers` is not there."""
    try:
        from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    except ImportError:
        raise UserError(
            f"data.vocabulary={size}: tokens of more than a byte are learned by tokenizers: pip install 'vergence[text]'; "
            f"{BYTES}, the bytes, need nothing"
        ) from None
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    )
    return Vocabulary(tokenizer.to_str())


def vocabulary_of(config: DataConfig, index: Index, captions: Captions | None) -> Vocabulary | None:
    """That of a training set, learned once and kept beside its index; None where tokens are bytes. Raises UserError."""
    if config.vocabulary == BYTES:
        return None
    kept = kept_vocabulary(index.path.parent, index.digest, config)
    if kept is None:
        texts = _of_classes(captions) if captions else _own(Reader(index, access=config.access))
        kept = learned(texts, config.vocabulary)
        write_atomic(_file(index.path.parent, index.digest, config), kept.json)
    return kept


def kept_vocabulary(folder: Path, data_digest: str, config: DataConfig) -> Vocabulary | None:
    """What is kept of a training set that need not be there any more; None: nothing, or not whole."""
    file = _file(folder, data_digest, config)
    return None if read_mapping(file) is None else Vocabulary(file.read_text(encoding="utf-8"))


def _file(folder: Path, data_digest: str, config: DataConfig) -> Path:
    asked = json.dumps([data_digest, config.captions, config.vocabulary])
    return folder / f"{hashlib.sha256(asked.encode()).hexdigest()[:16]}.vocabulary.json"


def _of_classes(captions: Captions) -> Iterator[str]:
    for label in range(len(captions.names)):
        for template in range(len(captions.templates)):
            yield captions.of(label, template)


def _own(reader: Reader) -> Iterator[str]:
    """The first samples' own texts; from a store they come with pieces that training wants anyway."""
    ids = np.arange(min(TEXTS, len(reader.index)))
    for some in np.array_split(ids, -(-len(ids) // 1000)):
        for parts in reader.field(some, TEXT):
            if not isinstance(parts, BadSample):
                yield parts[""].tobytes().decode()


@lru_cache(maxsize=4)
def _tokenizer(text: str) -> "Tokenizer":
    from tokenizers import Tokenizer

    return Tokenizer.from_str(text)
