"""Loaded encoders: two lines to use, a device, digests, and a module that trains."""

import copy

import numpy as np
import pytest
import torch
from tiny_encoder import MEAN, STD, make_card, make_encoder

from vergence.methods.method import Encoder
from vergence.platform.encoders.encoder import LoadedEncoder, ModuleEncoder, usable
from vergence.platform.encoders.export import export_encoder
from vergence.platform.encoders.load import load_encoder
from vergence.platform.errors import UserError

IMAGES = np.random.default_rng(0).integers(0, 256, (9, 16, 16, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def trained() -> Encoder:
    return make_encoder()


@pytest.fixture(scope="module")
def loaded(trained: Encoder, tmp_path_factory: pytest.TempPathFactory) -> LoadedEncoder:
    return load_encoder(str(export_encoder(trained, make_card(), tmp_path_factory.mktemp("run") / "exports")))


def test_a_module_as_an_encoder_gives_the_vectors_of_its_export(
    trained: Encoder, loaded: LoadedEncoder
) -> None:
    module = ModuleEncoder.of(trained, "mine", size=16, mean=MEAN, std=STD)
    assert (module.size, module.dim) == (loaded.size, loaded.dim)
    np.testing.assert_allclose(module(IMAGES), loaded(IMAGES), atol=1e-5)
    assert module(IMAGES[:0]).shape == (0, 128)
    assert trained.training  # a copy was taken
    other = copy.deepcopy(trained)
    other.backbone.conv1.weight.data[0, 0, 0, 0] += 1e-3
    changed = ModuleEncoder.of(other, "mine", size=16, mean=MEAN, std=STD)
    bigger = ModuleEncoder.of(trained, "mine", size=32, mean=MEAN, std=STD)
    again = ModuleEncoder.of(trained, "another name", size=16, mean=MEAN, std=STD)
    assert again.digest == module.digest
    assert len({module.digest, changed.digest, bigger.digest}) == 3


def test_the_module_trains_with_the_programs_weights_and_leaves_the_program_alone(
    loaded: LoadedEncoder,
) -> None:
    before, module = loaded(IMAGES), loaded.module
    assert module is loaded.module
    assert module.training
    x = torch.from_numpy((IMAGES / 255 - MEAN) / STD).permute(0, 3, 1, 2).float()
    with torch.no_grad():
        np.testing.assert_allclose(copy.deepcopy(module).eval()(x), before, atol=1e-5)
    head = torch.nn.Linear(128, 3)
    optimiser = torch.optim.SGD([*module.parameters(), *head.parameters()], lr=0.1)
    labels, losses = torch.arange(9) % 3, []
    for _ in range(8):
        loss = torch.nn.functional.cross_entropy(head(module(x)), labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert all(parameter.grad is not None for parameter in module.parameters())
    assert losses[-1] < losses[0] / 2
    assert (loaded(IMAGES) == before).all()


def test_an_encoder_moves_as_a_whole_and_the_first_one_stays(loaded: LoadedEncoder) -> None:
    """On the device `meta`, where every operation needs all its tensors too; the tests have no GPU."""
    moved = loaded.to("meta")
    assert {tensor.device.type for tensor in moved.program.state_dict.values()} == {"meta"}
    images = torch.zeros(3, 16, 16, 3, dtype=torch.uint8, device="meta")
    out = moved.program.module()(images)
    assert (out.device.type, tuple(out.shape)) == ("meta", (3, 128))
    assert loaded.to("cpu") is loaded
    assert loaded.device.type == "cpu"
    assert np.isfinite(loaded(IMAGES)).all()
    assert (moved.name, moved.digest, moved.card) == (loaded.name, loaded.digest, loaded.card)
    module = ModuleEncoder.of(make_encoder(), "x", size=16, mean=MEAN, std=STD)
    far = module.to("meta")
    assert {tensor.device.type for tensor in far.model.state_dict().values()} == {"meta"}
    assert {tensor.device.type for tensor in module.model.state_dict().values()} == {"cpu"}


def test_a_device_that_is_not_there_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert usable("auto").type == usable("cpu").type == "cpu"
    with pytest.raises(UserError, match=r"device cuda: this machine has 0 GPUs"):
        usable("cuda")
    with pytest.raises(UserError, match=r"device gpu: there is no such one; valid: auto, cpu, cuda"):
        usable("gpu")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert usable("auto") == usable("cuda") == torch.device("cuda")
    assert usable("cuda:1") == torch.device("cuda:1")
    with pytest.raises(UserError, match=r"device cuda:2: this machine has 2 GPUs"):
        usable("cuda:2")
