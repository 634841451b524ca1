"""What a method is: the contract between the objective (plain torch) and the machine that trains it."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import ClassVar, Generic, Literal, NamedTuple, Protocol, Self, TypeVar, cast, runtime_checkable

from torch import Tensor, nn

Tensors = tuple[Tensor, ...]
Sweep = Callable[[], Iterator[tuple[Tensor, Tensor]]]
"""This rank's part of the training samples, each once: ids (n,) int64 and representations h (n, dim) in eval mode.

A call starts anew. Ranks have parts of different lengths: no collective while one is under way.
"""


class Batch(NamedTuple):
    """One micro-batch, or a rank's whole share (then `views` is empty).

    views: one (n, 3, H, W) channels_last tensor per view, on the device; those of full size come first.
    ids: (n,) int64 sample ids, in global batch order.
    fields: other modalities by name; dim 0 is samples.
    geometry: one (n, 5) float32 tensor per view: crop top, left, height, width in source pixels, flip 0|1.
    shuffle: (n,) int64 permutation of the samples for shuffling BN, or None.
    num_large: how many views are of full size.
    progress: of the step, in [0, 1).
    """

    views: Sequence[Tensor]
    ids: Tensor
    fields: Mapping[str, Tensor] = {}
    geometry: Sequence[Tensor] = ()
    shuffle: Tensor | None = None
    num_large: int = 2
    progress: float = 0.0


class ViewRule(NamedTuple):
    """Which lists of views a method takes: `least` to `most` of full size, then smaller ones if `small`."""

    least: int
    most: int | None
    small: bool

    def allows(self, sizes: Sequence[int]) -> bool:
        """sizes: side of each view in pixels."""
        large = num_large(sizes)
        enough = self.least <= large and (self.most is None or large <= self.most)
        rest = sizes[large:]
        return enough and (self.small or not rest) and all(size < sizes[0] for size in rest)

    def __str__(self) -> str:
        count = f"exactly {self.least}" if self.most == self.least else f"at least {self.least}"
        return f"{count} views of one size" + (", then any number of smaller ones" if self.small else "")


def exactly(count: int) -> ViewRule:
    return ViewRule(count, count, small=False)


def at_least(count: int, *, small: bool = False) -> ViewRule:
    return ViewRule(count, None, small)


def num_large(sizes: Sequence[int]) -> int:
    """Number of views of full size: the first ones, of the first one's side."""
    return next((i for i, size in enumerate(sizes) if size != sizes[0]), len(sizes))


class Needs(NamedTuple):
    """What a method must be given in every batch.

    views: None: no images at all.
    fields: names of the modalities that `Batch.fields` must hold.
    tokens: whether its texts may be of a larger vocabulary than bytes (`DataFacts.vocabulary`).
    shuffle: whether batches carry a permutation for shuffling BN.
    places: whether `Batch.geometry` must tell where each pixel of a view lies, so that views may not be turned or sheared.
    """

    views: ViewRule | None = exactly(2)
    fields: tuple[str, ...] = ()
    tokens: bool = False
    shuffle: bool = False
    places: bool = False


Family = Literal[
    "instance contrast",
    "predictive contrast",
    "clustering",
    "self-distillation",
    "redundancy reduction",
    "vision-language",
]


class About(NamedTuple):
    """A line in the list of methods; the docstring of the method's module tells the rest.

    year: of the paper's first version; needs: views and state, in words.
    """

    year: int
    family: Family
    needs: str


class DataFacts(NamedTuple):
    """What a method may know of the run's data before it sees any.

    num_samples: for training; num_ids: sample ids are below it (some are held out); epochs: of the run.
    mean, std: of pixels in [0, 1], RGB; views are normalised by them, and so are images that a method makes itself.
    vocabulary: tokens of a text are below it.
    """

    num_samples: int
    num_ids: int
    epochs: int
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    vocabulary: int = 256


class Encoder(nn.Module, ABC):
    """Images (n, 3, H, W) -> representations (n, dim): what is exported."""

    dim: int
    part_dims: tuple[
        int, ...
    ] = ()  # widths of the representations of an image's parts, if it sees them apart

    @abstractmethod
    def forward(self, images: Tensor) -> Tensor: ...

    def parts(self, images: Tensor) -> tuple[list[Tensor], Tensor]:
        """Representations (n, part_dims[m]) of each part, and (n, parts) whether an image has it.

        TypeError: it sees the image as a whole.
        """
        raise TypeError(f"{type(self).__name__} sees the image as a whole")

    def features(self, images: Tensor) -> Tensor:
        """What is before pooling: the map (n, C, H', W') or the tokens (n, T, C); TypeError: it pools nothing."""
        raise TypeError(f"{type(self).__name__} has no features before pooling")

    def pool(self, features: Tensor) -> Tensor:
        """(n, dim): what forward makes of features; TypeError: it pools nothing."""
        raise TypeError(f"{type(self).__name__} has no features before pooling")

    def cells(self, features: Tensor) -> Tensor:
        """(n, S, C): the features of each place of the image, row by row, and of nothing else."""
        return features.flatten(2).mT


class Losses(Protocol):
    """A NamedTuple of 0-d fp32 tensors: the loss of a rank's share, and metrics without gradient by name."""

    @property
    def loss(self) -> Tensor: ...
    def _asdict(self) -> dict[str, Tensor]: ...


@runtime_checkable
class ReadsText(Protocol):
    """A method that puts images and texts into one space, where classes can be told by their names (zero-shot)."""

    def embed_images(self, h: Tensor) -> Tensor:
        """The encoder's output (n, dim) -> (n, d), not normalised."""
        ...

    def embed_text(self, fields: Mapping[str, Tensor]) -> Tensor:
        """Texts as `Batch.fields` holds them, `text` and `text.length` -> (n, d), not normalised."""
        ...


Config = TypeVar("Config")
Out = TypeVar("Out", bound=Tensors)
Targets = TypeVar("Targets", bound=Tensors)


class Method(nn.Module, ABC, Generic[Config, Out, Targets]):
    """A self-supervised objective: `class X(Method[XConfig, Embeddings, Targets])`.

    Dim 0 of every tensor in the NamedTuples `Out` and `Targets` is samples, so that the engine may cut the
    share into micro-batches and put the pieces together again; a method without targets has `tuple[()]`.

    Rules: trainable parameters act only inside `forward`; networks without gradient are frozen fp32
    submodules; schedules are functions of progress, never counters; `criterion` is the only place where
    samples meet. The objective is the mean over ranks of what `criterion` returns.
    """

    about: ClassVar[About]
    needs: ClassVar[Needs] = Needs()

    def __init__(self, config: Config, encoder: Encoder, data: DataFacts) -> None:
        super().__init__()
        self.config, self.data = config, data
        self.encoder = encoder

    @classmethod
    def build(cls, config: Config, encoder: Encoder, data: DataFacts) -> Self:
        """The method, initialised from torch's global generator; encoder: the one that is exported."""
        return cls(config, encoder, data)

    @abstractmethod
    def forward(self, batch: Batch) -> Out:
        """Embeddings of one micro-batch; all trainable parameters act here."""

    def targets(self, batch: Batch) -> Targets:
        """Teacher outputs or keys of one micro-batch; called once a step, without gradient."""
        return cast(Targets, ())

    @abstractmethod
    def criterion(self, out: Out, targets: Targets, batch: Batch) -> Losses:
        """Loss of this rank's share and metrics, in fp32; may be collective."""

    def after_step(self, out: Out, targets: Targets, batch: Batch) -> None:
        """EMA, queue, bank: once after each optimiser step, with the share."""
        return

    def before_epoch(self, epoch: int, sweep: Sweep) -> Collection[nn.Parameter]:
        """Clustering and the like, before the first step of each epoch (from 0); not after a resume within one.

        Only a method that overrides it pays for a sweep. What it finds belongs into buffers. Returns the trainable
        parameters that it has set, alike on all ranks: the optimiser begins anew with them. Collective.
        """
        return ()
