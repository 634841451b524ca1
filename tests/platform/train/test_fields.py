"""A method that needs a field and no images: packed sounds through the stream into the rank loop."""

import zipfile
from dataclasses import replace
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from ranks import import_deepspeed, run_ranks
from shard_files import png, wav, write_shard
from torch import Tensor, nn

from vergence.methods.method import Batch, DataFacts, Encoder, Method, Needs
from vergence.pipelines.recipe import Recipe
from vergence.pipelines.resolve import Resolved, resolve
from vergence.platform.data.index import open_index
from vergence.platform.data.shards import pack
from vergence.platform.errors import UserError
from vergence.platform.runs.run import Run, locked
from vergence.platform.train.loop import RankLoop

NUM, BATCH, WINDOW, HOP = 60, 12, 64, 32


class Sounds(Encoder):
    """(n, samples) and how many of them are real -> (n, dim): the mean over whole windows."""

    def __init__(self) -> None:
        super().__init__()
        self.dim, self.conv = 8, nn.Conv1d(1, 8, WINDOW, HOP)

    def forward(self, images: Tensor) -> Tensor:
        raise AssertionError("it takes sounds")

    def heard(self, sounds: Tensor, lengths: Tensor) -> Tensor:
        frames = torch.tanh(self.conv(sounds[:, None] * 8))
        whole = (lengths - WINDOW).clamp(min=0) // HOP + 1
        real = torch.arange(frames.shape[2]) < whole[:, None]
        return (frames * real[:, None]).sum(2) / whole[:, None]


class Out(NamedTuple):
    z: Tensor


class ToyLosses(NamedTuple):
    loss: Tensor
    accuracy: Tensor


class Heard(Method[None, Out, tuple[()]]):
    """Tells digits by their sound, with the class as a field."""

    encoder: Sounds
    needs: ClassVar[Needs] = Needs(views=None, fields=("audio", "label"))

    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__(None, Sounds(), DataFacts(NUM, NUM, 2))
        self.head = nn.Linear(8, 10)

    def forward(self, batch: Batch) -> Out:
        assert not batch.views
        return Out(self.head(self.encoder.heard(batch.fields["audio"], batch.fields["audio.length"])))

    def criterion(self, out: Out, targets: tuple[()], batch: Batch) -> ToyLosses:
        label = batch.fields["label"]
        assert (batch.fields["audio.rate"] == 8000).all()
        right = (out.z.argmax(1) == label).float().mean()
        return ToyLosses(F.cross_entropy(out.z.float(), label), right)


def recipe_of(shards: Path | str) -> Recipe:
    raw = {
        "epochs": 2,
        "precision": "fp32",
        "method": {"name": "simclr"},
        "data": {"train": str(shards), "holdout": 0.0},
        "batch": {"global": BATCH, "micro": 3, "regime": "two-pass"},
        "norm": {"group": 3},
        "optim": {"name": "sgd", "lr": 0.5, "per": BATCH},
        "track": {"every_steps": 1},
    }
    return Recipe.parse(raw, "recipe")


def sources(folder: Path, kind: str, digits: zipfile.ZipFile | None) -> Path:
    """NUM recordings as class/name.wav, or real ones as class/name.flac."""
    for i in range(NUM):
        path = folder / str(i % 10) / f"{i}.{kind}"
        path.parent.mkdir(parents=True, exist_ok=True)
        if digits is not None:
            path.write_bytes(digits.read(f"recordings/{i % 10}_theo_{i // 10}.flac"))
        else:
            tone = np.sin(np.arange(400 + 50 * (i % 7)) * (0.05 + 0.08 * (i % 10))) * 8000
            path.write_bytes(wav(tone.astype(np.int16)[:, None]))
    return folder


@pytest.fixture(params=["wav", "flac"])
def resolved(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Resolved:
    monkeypatch.setenv("VERGENCE_HOME", str(tmp_path / "home"))
    digits = None
    if request.param == "flac":
        shared = request.getfixturevalue("shared")
        digits = zipfile.ZipFile(shared / "data" / "spoken-digits" / "recordings.zip")
    packed = pack(sources(tmp_path / "digits", request.param, digits), tmp_path / "shards", per_shard=25)
    assert (packed.num_samples, packed.classes) == (NUM, [str(digit) for digit in range(10)])
    index = open_index(tmp_path / "shards", tmp_path / "index", images=False)
    assert index.extensions == {"cls": NUM, request.param: NUM}
    return resolve(recipe_of(tmp_path / "shards"), index, Heard())


def trained(rank: int, world: int, resolved: Resolved, run: Run) -> tuple[dict[str, np.ndarray], str]:
    job = replace(resolved.job(run, {}), build=Heard, attempt="test")
    loop = RankLoop(job)
    shares = (resolved.stream.share(step, rank, world) for step in range(job.steps))
    if rank:
        status = loop.run(shares).status
    else:
        with locked(run):
            status = loop.run(shares).status
    return {name: value.numpy().copy() for name, value in loop.engine.state().items()}, status


def test_a_method_with_fields_trains_on_1_and_2_workers_equally(resolved: Resolved) -> None:
    import_deepspeed()
    runs = {world: Run(f"on-{world}", attempt="test") for world in (1, 2)}
    for run in runs.values():
        run.logs.mkdir(parents=True)
    ((alone, status),) = run_ranks(trained, 1, resolved, runs[1])
    assert status == "finished"
    start = {f"model.{name}": value.numpy() for name, value in Heard().state_dict().items()}
    moved = {name: float(np.abs(alone[name] - value).max()) for name, value in start.items()}
    assert min(moved.values()) > 1e-3
    for state, _ in run_ranks(trained, 2, resolved, runs[2]):
        for name, value in alone.items():
            np.testing.assert_allclose(state[name], value, rtol=0, atol=2e-6, err_msg=name)


def test_what_the_shards_lack_is_said_before_the_run(tmp_path: Path) -> None:
    picture = png(np.zeros((8, 8, 3), np.uint8))
    shard = write_shard(tmp_path / "a.tar", ((f"{i}", {"png": picture}) for i in range(NUM)))
    with pytest.raises(
        UserError, match=r"needs the field audio, and no sample has a \.wav, \.flac, \.ogg; .* \.png"
    ):
        resolve(recipe_of(shard), open_index(shard, tmp_path / "index"), Heard())
    with_sounds = ({"png": picture, "wav": wav(np.zeros((99, 1), np.int16))} for _ in range(NUM))
    shard = write_shard(tmp_path / "b.tar", ((f"{i}", each) for i, each in enumerate(with_sounds)))
    with pytest.raises(UserError, match=r"needs the field label, and no sample has a \.cls"):
        resolve(recipe_of(shard), open_index(shard, tmp_path / "index"), Heard())
    bare = write_shard(tmp_path / "c.tar", [("a", {"wav": b"RIFF"})])
    with pytest.raises(UserError, match="holds no images"):
        open_index(bare, tmp_path / "index")
    open_index(bare, tmp_path / "index", images=False)
    with pytest.raises(UserError, match=r"no images, only \.wav"):
        open_index(bare, tmp_path / "index")
