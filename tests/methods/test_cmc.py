import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from small_methods import FACTS, ToyEncoder, normal, small_method, two_views, whole
from torch import Tensor

from vergence.methods.catalog import METHODS
from vergence.methods.cmc import CMC, CMCConfig, Embeddings
from vergence.methods.method import Batch
from vergence.methods.parts.backbones import EncoderConfig, build_encoder
from vergence.methods.parts.maps import MapConfig

N, D = 4, 5


class ThreeParts(ToyEncoder):
    part_dims = (1, 2, 3)


def method_of(parts: int = 2, **settings: Any) -> CMC:
    if parts == 2:
        method: CMC = small_method("cmc", **settings)
        return method
    torch.manual_seed(0)
    config = CMCConfig(**{"embed_dim": D, "num_negatives": 12, "temperature": 0.5, **settings})
    return CMC(config, ThreeParts(), FACTS).double()


def outputs(parts: int = 2, views: int = 1, seed: int = 0) -> Embeddings:
    return Embeddings(
        normal(N, views, parts, D, seed=seed) * 2, torch.ones(N, views, parts, dtype=torch.float64)
    )


def unit(row: list[float]) -> list[float]:
    length = math.sqrt(sum(x * x for x in row))
    return [x / length for x in row]


def transcription(method: CMC, out: Embeddings, images: list[int], a: int, c: int) -> float:
    """Mean of a -> c over some images, one view, no step taken yet."""
    T, n, K = 0.5, FACTS.num_ids, 12
    rows = method.banks[c].rows.tolist()
    drawn = method.banks[0].draw(torch.arange(N), K, 0.0).tolist()
    e = []
    for i in images:
        u = unit(out.u_bvmd[i, 0, a].tolist())
        e.append([math.exp(sum(x * y for x, y in zip(u, rows[j], strict=True)) / T) for j in [i, *drawn[i]]])
    if method.config.form == "softmax":
        return sum(math.log(sum(row) / row[0]) for row in e) / len(e)
    Z, total = n * sum(map(sum, e)) / (len(e) * (1 + K)), 0.0
    for row in e:
        p = [x / Z for x in row]
        total -= math.log(p[0] / (p[0] + K / n))
        total -= sum(math.log((K / n) / (x + K / n)) for x in p[1:])
    return total / len(e)


@pytest.mark.parametrize("form", ["nce", "softmax"])
@pytest.mark.parametrize(("parts", "graph"), [(2, "full"), (3, "full"), (3, "core")])
def test_loss_equals_float64_transcription(form: str, parts: int, graph: str) -> None:
    method, out = method_of(parts, form=form, graph=graph), outputs(parts)
    pairs = [(a, c) for a in range(parts) for c in range(parts) if a != c and (graph == "full" or a * c == 0)]
    expected = sum(transcription(method, out, [0, 1, 2, 3], a, c) for a, c in pairs)
    assert method.criterion(out, (), whole(N)).loss.item() == pytest.approx(expected, abs=1e-9)


def test_images_without_a_part_have_no_say_in_it_and_leave_its_row_alone() -> None:
    method, out = method_of(3, form="nce"), outputs(3)
    out.present_bvm[1, 0, 0] = out.present_bvm[2, 0, 2] = 0
    having = [{0, 2, 3}, {0, 1, 2, 3}, {0, 1, 3}]
    pairs = [(a, c) for a in range(3) for c in range(3) if a != c]
    expected = sum(transcription(method, out, sorted(having[a] & having[c]), a, c) for a, c in pairs)
    loss = method.criterion(out, (), whole(N)).loss
    assert loss.item() == pytest.approx(expected, abs=1e-9)
    other = out._replace(u_bvmd=out.u_bvmd.clone())
    other.u_bvmd[1, 0, 0] += 1
    assert torch.equal(method.criterion(other, (), whole(N)).loss, loss)
    old = [bank.rows.clone() for bank in method.banks]
    method.after_step(out, (), whole(N))
    for c, bank in enumerate(method.banks):
        changed = (bank.rows != old[c]).any(dim=1)[:N].nonzero().flatten().tolist()
        assert set(changed) == having[c]


def test_contrast_within_the_batch_equals_transcription() -> None:
    method, out, T = method_of(form="softmax", negatives="batch"), outputs(), 0.5
    out.present_bvm[2, 0, 1] = 0
    u, total, images = F.normalize(out.u_bvmd[:, 0], dim=-1), 0.0, [0, 1, 3]
    for a, c in ((0, 1), (1, 0)):
        for i in images:
            keys = images if c == 1 else range(N)
            e = {j: math.exp(float(u[i, a] @ u[j, c]) / T) for j in keys}
            total += math.log(sum(e.values()) / e[i]) / 3
    assert method.criterion(out, (), whole(N)).loss.item() == pytest.approx(total, abs=1e-9)
    method.after_step(out, (), whole(N))
    assert len(method.banks) == 0


def test_closed_forms() -> None:
    K, T = 64, 0.07
    eye = torch.eye(2, dtype=torch.float64)
    same = Embeddings(eye[:1].expand(1, 1, 2, 2), torch.ones(1, 1, 2, dtype=torch.float64))
    for others, expected in ((eye[0], 2 * math.log(1 + K)), (eye[1], 7.998e-5)):
        method = method_of(form="softmax", embed_dim=2, num_negatives=K, temperature=T)
        for bank in method.banks:
            bank.rows.copy_(others)
            bank.rows[0] = eye[0]
            bank.draw = lambda ids, count, progress: torch.full((len(ids), count), 7)  # type: ignore[assignment]
        assert method.criterion(same, (), whole(1)).loss.item() == pytest.approx(expected, abs=1e-6)
    alike = method_of(form="nce", embed_dim=2, num_negatives=K, temperature=T)
    for bank in alike.banks:
        bank.rows.copy_(eye[0])  # every row: P = 1 / n
    twice = 2 * (math.log(1 + K) + K * math.log((1 + K) / K))
    assert alike.criterion(same, (), whole(1)).loss.item() == pytest.approx(twice, abs=1e-6)


@pytest.mark.parametrize("settings", [{"form": "nce"}, {"form": "softmax", "negatives": "batch"}])
def test_gradient_by_finite_differences(settings: dict[str, Any]) -> None:
    method, out = method_of(**settings), outputs(views=2)
    method.normalisers.fill_(100)

    def loss(u: Tensor) -> Tensor:
        return method.criterion(out._replace(u_bvmd=u), (), whole(N)).loss

    assert torch.autograd.gradcheck(loss, [out.u_bvmd.requires_grad_()])


def test_rows_are_scored_before_they_are_written_by_the_first_view_each_part_in_its_own_bank() -> None:
    method, batch = small_method("cmc"), two_views(5)
    old = [bank.rows.clone() for bank in method.banks]
    out = method(batch)
    method.criterion(out, (), whole(5))
    assert all(torch.equal(bank.rows, rows) for bank, rows in zip(method.banks, old, strict=True))
    method.after_step(out, (), batch)
    u = F.normalize(out.u_bvmd[:, 0].detach(), dim=-1)
    for c, bank in enumerate(method.banks):
        torch.testing.assert_close(bank.rows[:5], F.normalize((old[c][:5] + u[:, c]) / 2, dim=1))
        assert torch.equal(bank.rows[5:], old[c][5:])


@pytest.mark.parametrize(("split", "channels"), [("lab", [1, 2]), ("ydbdr", [1, 2]), ("rgb", [1, 1, 1])])
def test_a_split_encoder_sees_each_part_by_its_own_backbone(split: Any, channels: list[int]) -> None:
    torch.manual_seed(0)
    encoder = build_encoder(EncoderConfig(name="resnet18", stem="cifar", width=0.125, split=split)).eval()
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    parts, present = encoder.parts(images)
    assert [tuple(h.shape) for h in parts] == [(2, 64)] * len(channels)
    assert present.all()
    torch.testing.assert_close(torch.cat(parts, dim=1), encoder(images))
    assert encoder.dim == 64 * len(channels)
    if split == "ydbdr":  # a gray image: its colour differences are zero, whatever its luminance
        gray = images[:, :1].expand(-1, 3, -1, -1)
        _, first = encoder.parts(gray)[0]
        _, second = encoder.parts(gray / 2)[0]
        torch.testing.assert_close(first, second, atol=1e-4, rtol=0)


def test_an_encoder_of_whole_images_and_nce_within_the_batch_are_refused() -> None:
    encoder = build_encoder(EncoderConfig(name="resnet18", stem="cifar", width=0.125))
    config, cls = METHODS["cmc"]
    with pytest.raises(ValueError, match=r"encoder\.split"):
        cls.build(config(), encoder, FACTS)
    with pytest.raises(ValidationError, match="negatives batch goes with form softmax"):
        CMCConfig(negatives="batch")


def test_published_defaults() -> None:
    config = CMCConfig()
    assert (config.num_negatives, config.temperature, config.momentum, config.form) == (
        16384,
        0.07,
        0.5,
        "nce",
    )
    assert config.graph == "full"


MAPS = (MapConfig(name="depth"), MapConfig(name="segmentation", classes=3))


def of_a_scene(**settings: Any) -> CMC:
    """An image seen whole, and two maps."""
    torch.manual_seed(0)
    config = CMCConfig(embed_dim=D, num_negatives=12, temperature=0.5, maps=MAPS, **settings)
    encoder = ToyEncoder()
    encoder.part_dims = ()
    return CMC(config, encoder, FACTS).double()


def scene(unknown: bool = False) -> Batch:
    """Four pictures of 12 x 12 with maps, seen whole, in part, and mirrored; unknown: the second one's depth."""
    batch, generator = two_views(N), torch.Generator().manual_seed(0)
    depth = torch.randint(0, 250, (N, 12, 12), generator=generator, dtype=torch.uint8)
    classes = torch.randint(0, 3, (N, 12, 12), generator=generator, dtype=torch.uint8)
    if unknown:
        depth[1] = 255
    boxes = torch.tensor(
        [[0, 0, 12, 12, 0], [2, 3, 4, 4, 0], [5, 0, 7, 3, 0], [0, 0, 12, 12, 1]], dtype=torch.float32
    )
    maps = torch.stack([depth, classes], dim=-1)
    return batch._replace(fields={"array": maps}, geometry=[boxes, boxes.roll(1, dims=0)])


def test_modalities_beside_an_image_have_networks_banks_and_directions_of_their_own() -> None:
    method, batch = of_a_scene(graph="core"), scene()
    assert method.needs.fields == ("array",)
    assert of_a_scene().directions == [(a, c) for a in range(3) for c in range(3) if a != c]
    assert method.directions == [(0, 1), (0, 2), (1, 0), (2, 0)]
    out = method(batch)
    assert out.u_bvmd.shape == (N, 2, 3, D)
    assert out.present_bvm.all()
    method.criterion(out, (), batch).loss.backward()
    assert [name for name, p in method.named_parameters() if p.grad is None or not p.grad.any()] == []
    old = [bank.rows.clone() for bank in method.banks]
    method.after_step(out, (), batch)
    assert len(old) == 3
    assert all((bank.rows[:N] != rows[:N]).any() for bank, rows in zip(method.banks, old, strict=True))


def test_a_sample_without_a_modality_counts_in_the_other_directions_only() -> None:
    method, batch = of_a_scene(), scene(unknown=True)
    out = method(batch)
    assert out.present_bvm[:, 0].tolist() == [[1, 1, 1], [1, 0, 1], [1, 1, 1], [1, 1, 1]]
    assert out.present_bvm[:, 1].tolist() == out.present_bvm[:, 0].tolist()
    one = out._replace(u_bvmd=out.u_bvmd[:, :1], present_bvm=out.present_bvm[:, :1])
    having = [{0, 1, 2, 3}, {0, 2, 3}, {0, 1, 2, 3}]
    expected = sum(
        transcription(method, one, sorted(having[a] & having[c]), a, c) for a, c in method.directions
    )
    assert method.criterion(one, (), batch).loss.item() == pytest.approx(expected, abs=1e-9)
    row = method.banks[1].rows[1].clone()
    method.after_step(out, (), batch)
    assert torch.equal(method.banks[1].rows[1], row)


def test_maps_of_another_form_and_maps_of_one_name_are_refused() -> None:
    method, batch = of_a_scene(), scene()
    for wrong in (
        batch.fields["array"][..., :1],
        batch.fields["array"].float(),
        batch.fields["array"][..., 0],
    ):
        with pytest.raises(ValueError, match=r"2 maps are arrays \(H, W, 2\) of uint8, got"):
            method(batch._replace(fields={"array": wrong}))
    with pytest.raises(ValidationError, match="two maps have one name"):
        CMCConfig(maps=(MAPS[0], MAPS[0]))
