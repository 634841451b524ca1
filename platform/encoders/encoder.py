"""Encoders that are ready to call: pixels of uint8 in, vectors of float32 out, on the CPU or a GPU."""

import copy
import hashlib
import io
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.export.passes import move_to_device_pass

from vergence.methods.method import Encoder
from vergence.platform.encoders.export import EncoderCard, PixelEncoder
from vergence.platform.errors import UserError

BATCH = 256
CPU = torch.device("cpu")

Images = NDArray[np.uint8]
Rows = NDArray[np.float32]


class Embedder(Protocol):
    """Whatever gives images vectors.

    Equal digests give equal vectors; what has none, "", is not worth keeping.
    """

    @property
    def name(self) -> str: ...

    @property
    def size(self) -> int:
        """Side S of its input, pixels."""
        ...

    @property
    def dim(self) -> int: ...

    @property
    def digest(self) -> str: ...

    def to(self, device: torch.device) -> "Embedder": ...

    def __call__(self, images: Images) -> Rows:
        """uint8 (n, S, S, 3) RGB -> float32 (n, dim), not normalised; any n."""
        ...


@dataclass(frozen=True)
class LoadedEncoder:
    """An exported encoder, ready to call.

    With two lines it is at work: `encoder = load_encoder("models:/NAME@champion")`, `encoder(images)`.
    """

    name: str  # a run, a file, or models:/NAME/VERSION (an alias is resolved once)
    size: int  # input side S, pixels
    dim: int
    digest: str  # of weights and input size, 16 hex digits: the same wherever the encoder is kept
    card: EncoderCard | None
    program: torch.export.ExportedProgram
    device: torch.device = CPU

    def __call__(self, images: Images) -> Rows:
        """uint8 (n, S, S, 3) RGB -> float32 (n, dim), not normalised; any n, in batches of 256."""
        return _in_batches(self._run, images, self.dim, self.device)

    def to(self, device: torch.device | str) -> "LoadedEncoder":
        """The same encoder on another device; float32 there too, without TF32. UserError: there is no such device."""
        device = usable(device)
        if device == self.device:
            return self
        copied = _unpacked(_packed(self.program))  # the pass that moves a program changes it
        return replace(self, program=move_to_device_pass(copied, device), device=device)

    def __reduce__(self) -> tuple[Any, ...]:
        """It travels between processes, and arrives on the CPU: the next machine may have no such device."""
        about = {
            "name": self.name,
            "size": self.size,
            "dim": self.dim,
            "digest": self.digest,
            "card": self.card,
        }
        return _arrived, (about, _packed(self.to(CPU).program))

    @cached_property
    def module(self) -> Encoder:
        """The encoder as a module that trains: (n, 3, H, W) float32, normalised by the card's mean and std, -> (n, dim).

        Built from the card and filled with a copy of the weights, on the device of this encoder, in training mode; the
        same one each time. Raises UserError: there is no card, or this version cannot build what it describes.
        """
        from vergence.platform.encoders.rebuild import trainable  # brings timm

        return trainable(self.name, self.card, self.backbone_weights).to(self.device)

    def trainable(self, num_classes: int = 0) -> nn.Module:
        """A model to fine-tune: the backbone with these weights, all of them, and a fresh classifier; 0: none.

        (n, 3, H, W) float32, normalised by the card's mean and std -> (n, num_classes or dim), in training mode, a new one
        each time. Raises UserError as `module`; `timm_backbone` takes more arguments.
        """
        from vergence.platform.encoders.rebuild import timm_backbone

        return timm_backbone(self, num_classes)

    @property
    def backbone_weights(self) -> dict[str, Tensor]:
        """Weights of the backbone under timm's names, those of the program itself."""
        prefix = "encoder.backbone."
        state = self.program.state_dict
        return {key.removeprefix(prefix): state[key] for key in state if key.startswith(prefix)}

    @cached_property
    def _run(self) -> Callable[[Tensor], Tensor]:
        return self.program.module()


def _packed(program: torch.export.ExportedProgram) -> bytes:
    file = io.BytesIO()
    torch.export.save(program, file)
    return file.getvalue()


def _unpacked(program: bytes) -> torch.export.ExportedProgram:
    return torch.export.load(io.BytesIO(program))


def _arrived(about: dict[str, Any], program: bytes) -> LoadedEncoder:
    return LoadedEncoder(**about, program=_unpacked(program))


@dataclass(frozen=True)
class ModuleEncoder:
    """A module as an encoder, as it stands: a copy of it in eval mode."""

    name: str
    size: int
    dim: int
    model: PixelEncoder
    device: torch.device = CPU

    @classmethod
    def of(
        cls, encoder: nn.Module, name: str, *, size: int, mean: Sequence[float], std: Sequence[float]
    ) -> "ModuleEncoder":
        """encoder: (n, 3, S, S) float32, normalised by mean and std -> (n, dim)."""
        model = PixelEncoder(copy.deepcopy(encoder), mean, std).cpu().float().eval().requires_grad_(False)
        with torch.inference_mode():
            dim = model(torch.zeros(1, size, size, 3, dtype=torch.uint8)).shape[1]
        return cls(name, size, int(dim), model)

    def __call__(self, images: Images) -> Rows:
        """uint8 (n, S, S, 3) RGB -> float32 (n, dim), not normalised; any n, in batches of 256."""
        return _in_batches(self.model, images, self.dim, self.device)

    def to(self, device: torch.device | str) -> "ModuleEncoder":
        """The same encoder on another device. UserError: there is no such device."""
        device = usable(device)
        if device == self.device:
            return self
        return replace(self, model=copy.deepcopy(self.model).to(device), device=device)

    @cached_property
    def digest(self) -> str:
        return digest_of(self.size, self.model.state_dict())


def digest_of(size: int, state: Mapping[str, Tensor]) -> str:
    """Of input size and weights, 16 hex digits."""
    sha256 = hashlib.sha256(str(size).encode())
    for key, tensor in sorted(state.items()):
        sha256.update(key.encode())
        sha256.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return sha256.hexdigest()[:16]


def usable(device: torch.device | str) -> torch.device:
    """The device of this name; "auto": a GPU if there is one, else the CPU. UserError: this machine has no such one."""
    num_gpus = torch.cuda.device_count()
    if device == "auto":
        return torch.device("cuda" if num_gpus else "cpu")
    try:
        found = torch.device(device)
    except RuntimeError:
        raise UserError(f"device {device}: there is no such one; valid: auto, cpu, cuda, cuda:N") from None
    if found.type == "cuda" and (found.index or 0) >= num_gpus:
        raise UserError(
            f"device {found}: this machine has {num_gpus} GPUs that torch can use; valid: auto, cpu"
        )
    return found


def _in_batches(run: Callable[[Tensor], Tensor], images: Images, dim: int, device: torch.device) -> Rows:
    with torch.inference_mode(), _exact(device):
        rows = [
            run(torch.from_numpy(np.array(images[start : start + BATCH])).to(device)).cpu()
            for start in range(0, len(images), BATCH)
        ]
    return torch.cat(rows).numpy() if rows else np.zeros((0, dim), np.float32)


def _exact(device: torch.device) -> AbstractContextManager[Any]:
    """Convolutions in fp32 that are fp32, and the same ones each time."""
    if device.type != "cuda":
        return nullcontext()
    return torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False)
