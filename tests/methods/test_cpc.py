"""CPC over everything that is a sequence; the loss itself is tried in parts/test_sequences.py."""

import math
from typing import Any

import pytest
import torch
from small_methods import FACTS, ToyEncoder, normal, patch_encoder, small_method
from torch import Tensor, nn

from vergence.methods.cpc import CPC, Codes, CPCConfig
from vergence.methods.method import Batch, DataFacts, Encoder
from vergence.methods.parts.backbones import EncoderConfig, build_encoder


def cpc(name: str, seed: int = 0, encoder: dict[str, Any] | None = None, **config: Any) -> CPC:
    torch.manual_seed(seed)
    built = build_encoder(EncoderConfig.model_validate({"name": name, "width": 1 / 16, **(encoder or {})}))
    return CPC(CPCConfig(**{"steps": 3, "context_dim": 16, **config}), built, FACTS)


def fields(n: int, **of: Tensor) -> Batch:
    return Batch([], torch.arange(n), {name.replace("__", "."): value for name, value in of.items()})


def sounds(n: int = 4, seconds: int = 900) -> Batch:
    lengths = torch.linspace(seconds / 2, seconds, n).long()
    waves = normal(n, seconds).float() * (torch.arange(seconds) < lengths[:, None])
    return fields(n, audio=waves, audio__length=lengths)


def loss_of(method: CPC, batch: Batch) -> Tensor:
    return method.criterion(method(batch), (), batch._replace(views=[])).loss


SEQUENCES: dict[str, tuple[CPC, Batch, tuple[int, ...]]] = {
    "sounds": (cpc("waves", encoder={"strides": (5, 4)}, window=900), sounds(), (4, 1, 43, 32)),
    "texts": (
        cpc("bytes", encoder={"strides": (1, 2)}, window=40),
        fields(
            4,
            text=torch.arange(4 * 30, dtype=torch.uint8).view(4, 30),
            text__length=torch.tensor([30, 9, 25, 11]),
        ),
        (4, 1, 19, 32),
    ),
    "vectors": (cpc("vectors", encoder={"inputs": 3}), fields(4, array=normal(4, 8, 3)), (4, 1, 8, 32)),
}


# arrays have one shape
PADDED = [
    name for name, (_, batch, _) in SEQUENCES.items() if any(f.endswith(".length") for f in batch.fields)
]


@pytest.mark.parametrize("name", SEQUENCES)
def test_one_interface_takes_every_kind_of_sequence(name: str) -> None:
    method, batch, shape = SEQUENCES[name]
    out = method(batch)
    assert out.z_bltd.shape == shape
    assert out.p_bltkd.shape == (*shape[:3], 3, shape[3])
    assert method.needs.views is None
    assert method.needs.fields == (next(iter(batch.fields)),)
    method.predictions.weight.data.zero_()
    losses = method.criterion(method(batch), (), batch)
    steps = method.observations.steps(method.encoder, batch)
    real = shape[0] * shape[2] if steps is None else int(steps.sum())
    assert losses.loss.item() == pytest.approx(math.log(real), abs=1e-5)


@pytest.mark.parametrize("name", PADDED)
def test_padding_changes_neither_loss_nor_gradient(name: str) -> None:
    """What a share is padded to depends on its longest sample, and on other ranks it is another one."""
    method, batch, _ = SEQUENCES[name]
    field = next(iter(batch.fields))
    wider = torch.cat(
        [batch.fields[field], batch.fields[field][:, :7]], dim=1
    )  # what is there must not matter
    padded = batch._replace(fields={**batch.fields, field: wider})
    losses = [loss_of(method, each) for each in (batch, padded)]
    assert losses[0] == losses[1]
    gradients = [torch.autograd.grad(loss, tuple(method.parameters())) for loss in losses]
    assert all(torch.equal(a, b) for a, b in zip(*gradients))


def test_an_image_is_rows_of_patches_top_down_in_lanes_of_columns() -> None:
    method: CPC = small_method("cpc", patches={})
    batch = Batch([normal(3, 3, 4, 4), normal(3, 3, 4, 4, seed=1)], torch.arange(3))
    out = method(batch)
    assert out.z_bltd.shape == (3, 6, 3, 6)
    grid = method.encoder.features(batch.views[1])  # (b, d, row, column)
    torch.testing.assert_close(out.z_bltd[:, 3 + 2, 1], grid[:, :, 1, 2])
    lower = [view.clone() for view in batch.views]
    lower[0][:, :, 3] += 1  # seen by the last row of patches alone
    changed = method(batch._replace(views=lower))
    assert torch.equal(out.p_bltkd[:, :, :2], changed.p_bltkd[:, :, :2])
    assert not torch.equal(out.p_bltkd[:, :3, 2], changed.p_bltkd[:, :3, 2])


def test_frames_are_encoded_one_by_one_as_images_are() -> None:
    data = DataFacts(100, 100, 10, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
    method = CPC(CPCConfig(frames=True, steps=2), ToyEncoder().double(), data).double()
    frames = (normal(3, 5, 4, 4, 3).sigmoid() * 255).to(torch.uint8)
    out = method(fields(3, array=frames))
    image = (
        frames[1, 2].permute(2, 0, 1).double() / 255 - torch.tensor(data.mean).double()[:, None, None]
    ) / (torch.tensor(data.std).double()[:, None, None])
    torch.testing.assert_close(out.z_bltd[1, 0, 2], method.encoder(image[None])[0], atol=1e-6, rtol=0)
    assert method.needs.fields == ("array",)
    with pytest.raises(
        ValueError, match=r"frames are arrays \(T, H, W, 3\) of uint8, got \(5, 4\) of torch.float64"
    ):
        method(fields(3, array=normal(3, 5, 4)))


def test_a_window_falls_where_the_draw_of_sample_and_progress_says_and_stays_inside() -> None:
    method = cpc("waves", encoder={"strides": (5,)}, window=100)
    ramp = torch.arange(1, 301).float().expand(40, 300)
    lengths = torch.full((40,), 300)
    lengths[0] = 60
    batch = fields(40, audio=ramp, audio__length=lengths)

    def shown(batch: Batch) -> Tensor:
        return method.observations._windows("audio", batch, method._counter(batch))

    windows = shown(batch)
    assert windows[0].tolist() == [*range(1, 61), *[0] * 40]
    assert (windows[1:].diff(dim=1) == 1).all()
    starts = windows[1:, 0]
    assert (len(starts.unique()) > 25, starts.min() >= 1, starts.max() <= 201) == (True, True, True)
    part = batch._replace(ids=batch.ids[7:9], fields={name: x[7:9] for name, x in batch.fields.items()})
    assert torch.equal(shown(part), windows[7:9])
    assert not torch.equal(shown(batch._replace(progress=0.5)), windows)
    assert method.observations.steps(method.encoder, batch).tolist() == [11] + [19] * 39


def test_what_is_no_sequence_and_what_tells_codes_of_each_other_is_refused() -> None:
    with pytest.raises(ValueError, match=r"a sequence is an image's patches \(encoder\.grid="):
        CPC(CPCConfig(), ToyEncoder(), FACTS)
    encoder = patch_encoder()
    encoder.backbone.net.append(nn.BatchNorm1d(6))
    with pytest.raises(ValueError, match=r"batch norm \(backbone\.net\.4\) tells each code of the others"):
        CPC(CPCConfig(), encoder, FACTS)


def test_published_defaults_and_matrices_without_bias() -> None:
    config = CPCConfig()
    assert (config.context, config.context_dim, config.steps, config.negatives, config.num_negatives) == (
        "gru", 256, 12, "all", None
    )  # fmt: skip
    method: CPC = small_method("cpc")
    assert method.predictions.bias is None
    W, c, z = method.predictions.weight.view(2, 6, -1), normal(5), normal(6, seed=1)
    f_2 = z @ W[1] @ c
    torch.testing.assert_close(method.predictions(c).view(2, 6)[1] @ z, f_2)
    assert Codes._fields == ("z_bltd", "p_bltkd")


def trained(method: CPC, batch_of: Any, steps: int, lr: float = 1e-2) -> float:
    """Mean information of the last ten steps."""
    optimiser, information = torch.optim.Adam(method.parameters(), lr), []
    for step in range(steps):
        batch = batch_of(step)._replace(progress=step / steps)
        losses = method.criterion(method(batch), (), batch)
        optimiser.zero_grad()
        losses.loss.backward()
        optimiser.step()
        information.append(losses.information.item())
    return sum(information[-10:]) / 10


@torch.no_grad()
def last_summary(method: CPC, batch: Batch) -> Tensor:
    z = method.observations.codes(method.encoder, batch, method._counter(batch))
    return method.summary(z)[:, 0, 0, -1]


def readable(x: Tensor, y: Tensor) -> float:
    """R² of a ridge regression on the other half of the rows."""
    x = torch.cat([x.flatten(1).double(), torch.ones(len(x), 1, dtype=torch.float64)], dim=1)
    half, y = len(x) // 2, y.double()
    gram = x[:half].T @ x[:half] + 1e-3 * half * torch.eye(x.shape[1], dtype=torch.float64)
    rest = x[half:] @ torch.linalg.solve(gram, x[:half].T @ y[:half]) - y[half:]
    return 1 - float((rest**2).mean() / y[half:].var())


def trajectories(n: int, seed: int) -> tuple[Batch, Tensor]:
    """Points on a circle with a hidden velocity, which neither a point nor any sum of points tells."""
    generator = torch.Generator().manual_seed(seed)
    phase, velocity = torch.rand(2, n, generator=generator)
    angle = 2 * math.pi * phase[:, None] + (2 * velocity[:, None] - 1) * torch.arange(10)
    points = torch.stack([angle.cos(), angle.sin()], dim=-1)
    return fields(n, array=points + 0.05 * torch.randn(points.shape, generator=generator)), velocity


def test_a_summary_of_a_trajectory_tells_its_hidden_velocity_and_the_raw_trajectory_does_not() -> None:
    torch.set_num_threads(1)
    method = cpc("vectors", encoder={"inputs": 2}, context_dim=32)
    batch, velocity = trajectories(1000, seed=999)
    before = readable(last_summary(method, batch), velocity)
    information = trained(method, lambda step: trajectories(32, step)[0], 100)
    assert information > 1.2
    assert readable(batch.fields["array"], velocity) < 0.1
    assert readable(last_summary(method, batch), velocity) > max(0.85, before + 0.1)


def grammar(n: int, seed: int) -> tuple[Batch, Tensor]:
    """Letters in one of two orders, abc or acb, from any letter on: each stands at each place equally often."""
    generator = torch.Generator().manual_seed(seed)
    start, order = torch.randint(3, (n,), generator=generator), torch.randint(2, (n,), generator=generator)
    letters = (start[:, None] + (1 + order[:, None]) * torch.arange(12)) % 3
    noise = torch.rand(letters.shape, generator=generator) < 0.1
    letters = torch.where(noise, torch.randint(3, letters.shape, generator=generator), letters)
    text = (letters + ord("a")).to(torch.uint8)
    return fields(n, text=text, text__length=torch.full((n,), 12)), order


def test_a_summary_of_a_text_tells_its_hidden_order_and_the_letters_do_not() -> None:
    torch.set_num_threads(1)
    method = cpc("bytes", encoder={"strides": (1,)}, window=12, context_dim=32)
    batch, order = grammar(1000, seed=999)
    trained(method, lambda step: grammar(32, step)[0], 80)
    letters = nn.functional.one_hot(batch.fields["text"].long() - ord("a"), 3)
    assert readable(letters, order) < 0.1
    assert readable(last_summary(method, batch), order) > 0.85


def moving_shapes(n: int, seed: int) -> tuple[Batch, Tensor]:
    """A bright square that goes left or right, (n, 8, 16, 16, 3) uint8: no frame tells which way."""
    generator = torch.Generator().manual_seed(seed)
    right = torch.randint(2, (n,), generator=generator)
    place = torch.randint(16, (n, 2), generator=generator)
    column = (place[:, :1] + (2 * right[:, None] - 1) * 2 * torch.arange(8)) % 16  # (n, t)
    pixel = torch.arange(16)
    across = ((pixel - column[..., None]) % 16 < 4)[:, :, None, :]
    down = ((pixel - place[:, 1:]) % 16 < 4)[:, None, :, None]
    frames = (across & down)[..., None].expand(-1, -1, -1, -1, 3).to(torch.uint8) * 200
    return fields(n, array=frames), right


class Small(Encoder):
    def __init__(self) -> None:
        super().__init__()
        self.dim = 32
        self.net = nn.Sequential(
            nn.Conv2d(3, 8, 4, 2), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 49, 32), nn.ReLU()
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images)


def told_by_neighbours(x: Tensor, y: Tensor) -> float:
    """Share of the first half that the nearest of the other half tell."""
    half = len(x) // 2
    nearest = torch.cdist(x[:half].double(), x[half:].double()).topk(5, largest=False).indices
    return float((y[half:][nearest].double().mean(dim=1).round() == y[:half]).double().mean())


def test_a_summary_of_frames_tells_which_way_a_shape_moves_and_the_last_frame_does_not() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    method = CPC(CPCConfig(frames=True, steps=2, context_dim=64), Small(), FACTS)
    batch, right = moving_shapes(1200, seed=999)
    assert trained(method, lambda step: moving_shapes(32, step)[0], 100) > 3.5
    last = batch.fields["array"].float().mean(dim=-1)[:, -1].flatten(1)
    assert told_by_neighbours(last, right) < 0.65
    assert told_by_neighbours(last_summary(method, batch), right) > 0.9
