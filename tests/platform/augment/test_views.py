"""Drawn parameters against torchvision's, and views that depend on nothing but seed, id, epoch and view."""

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import plain_rand_augment
import plain_rng
import pytest
import torch
from PIL import Image
from torch import Tensor

from vergence.methods.torchvision_shim import torchvision
from vergence.platform.augment import draw, filters
from vergence.platform.augment.presets import PRESETS, Augmentation
from vergence.platform.augment.views import Views, ViewSpec

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
N = 20_000
ALL: dict[str, Any] = {"rotate": 0.6, "noise": 0.5, "noise_sigma": (0.02, 0.2), "cutout": 0.5, "sobel": 0.2}
tv = torchvision.transforms.functional


def photos(sizes: list[tuple[int, int]], seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, (height, width, 3), dtype=np.uint8) for height, width in sizes]


def cifar_like(n: int) -> np.ndarray:
    return np.stack(photos([(32, 32)] * n))


def make(*specs: ViewSpec, seed: int = 0, dtype: torch.dtype = torch.float32) -> Views:
    return Views(specs, seed=seed, mean=MEAN, std=STD, dtype=dtype)


class Params(SimpleNamespace):
    """All that is drawn for some samples in one view: of draw.Crops and draw.Colours."""


def params(
    spec: Augmentation,
    seed: int,
    ids: np.ndarray,
    epoch: int,
    view: int,
    heights: np.ndarray,
    widths: np.ndarray,
) -> Params:
    counter = draw.Counter.of(seed, ids, epoch, view)
    crops, colours = draw.crops(spec, counter, heights, widths), draw.colours(spec, counter)
    return Params(**crops._asdict(), **colours._asdict())


def drawn(spec: Augmentation, height: int = 32, width: int = 32, view: int = 0, n: int = N) -> Params:
    return params(spec, 0, np.arange(n), 0, view, np.full(n, height), np.full(n, width))


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """Kolmogorov-Smirnov: the largest gap between two empirical distribution functions."""
    points = np.unique(np.concatenate([a, b]))
    cdfs = [np.searchsorted(np.sort(sample), points, side="right") / len(sample) for sample in (a, b)]
    return float(np.abs(cdfs[0] - cdfs[1]).max())


@pytest.mark.parametrize(("height", "width"), [(32, 32), (375, 500), (20, 200)])
def test_crop_boxes_are_distributed_as_torchvisions(height: int, width: int) -> None:
    torch.manual_seed(0)
    image, scale, ratio = torch.empty(3, height, width), [0.08, 1.0], [3 / 4, 4 / 3]
    get_params = torchvision.transforms.RandomResizedCrop.get_params
    theirs = np.array([get_params(image, scale, ratio) for _ in range(N // 2)])
    ours = drawn(Augmentation(), height, width).box
    assert (ours >= [0, 0, 1, 1]).all()
    assert (ours[:, :2] + ours[:, 2:] <= [height, width]).all()
    bound = 1.95 * np.sqrt(1 / N + 2 / N)  # two-sided p = 0.001
    for measure in (
        lambda box: box[:, 2] * box[:, 3],
        lambda box: box[:, 3] / box[:, 2],
        lambda box: box[:, 0],
        lambda box: box[:, 1],
        lambda box: box[:, 0] + box[:, 2],
    ):
        assert distance(measure(ours), measure(theirs)) < bound


def test_crop_falls_back_to_the_centre() -> None:
    # a strip of 10 x 400 admits no crop of at least .9 of its area and an allowed ratio
    box = drawn(Augmentation(crop_scale=(0.9, 1.0)), 10, 400, n=5).box
    image = torch.empty(3, 10, 400)
    expected = torchvision.transforms.RandomResizedCrop.get_params(image, [0.9, 1.0], [3 / 4, 4 / 3])
    assert (box == expected).all()


def test_colour_parameters_have_their_ranges_and_orders_are_uniform() -> None:
    spec = PRESETS["simclr"][0]
    p = drawn(spec)
    for column, strength in enumerate((0.8, 0.8, 0.8)):
        assert distance(p.factors[:, column], np.linspace(1 - strength, 1 + strength, N)) < 0.012
    assert distance(p.factors[:, 3], np.linspace(-0.2, 0.2, N)) < 0.012
    assert distance(p.sigma, np.linspace(0.1, 2.0, N)) < 0.012
    shares = {"flip": 0.5, "jitter": 0.8, "gray": 0.2, "blur": 0.5, "solarize": 0.0}
    for name, probability in shares.items():
        assert abs(getattr(p, name).mean() - probability) < 4 * np.sqrt(0.25 / N)
    orders, counts = np.unique(p.order, axis=0, return_counts=True)
    assert len(orders) == 24
    assert ((counts - N / 24) ** 2 / (N / 24)).sum() < 50  # chi-square, 23 degrees of freedom: p = 1e-3
    assert drawn(Augmentation(brightness=1.5), n=1000).factors[:, 0].min() >= 0


def test_parameters_are_independent_over_samples_views_and_operations() -> None:
    spec = PRESETS["simclr"][0]
    a, b = drawn(spec), drawn(spec, view=1)
    columns = [a.box[:, 0], a.box[:, 2], a.flip, a.jitter, *a.factors.T, a.gray, a.blur, a.sigma]
    columns += [b.box[:, 0], b.box[:, 2], b.flip, b.jitter, *b.factors.T, b.gray, b.blur, b.sigma]
    correlation = np.corrcoef(np.array(columns, dtype=float))
    size_and_place = {(0, 1), (11, 12)}  # a large crop has little room
    for i, j in zip(*np.triu_indices(len(columns), 1)):
        if (i, j) not in size_and_place:
            assert abs(correlation[i, j]) < 4.5 / np.sqrt(N), (i, j)
    neighbours = np.corrcoef(a.box[1:, 2], a.box[:-1, 2])[0, 1]
    assert abs(neighbours) < 4 / np.sqrt(N)


def test_each_word_of_the_counter_matters() -> None:
    size = np.full(64, 32)
    base = (0, np.arange(64), 0, 0)
    boxes = [
        params(Augmentation(), *words, size, size).box
        for words in (
            base,
            (1, *base[1:]),
            (0, np.arange(64, 128), 0, 0),
            (0, base[1], 1, 0),
            (0, base[1], 0, 1),
        )
    ]
    assert all((boxes[0] != other).any(axis=1).mean() > 0.9 for other in boxes[1:])


def test_every_draw_comes_from_the_stream_of_its_operation() -> None:
    """uniform(seed, id, epoch, view, op, k), in Python integers; ids have 64 bits."""
    ids, seed, epoch, view = [3, 3 + 2**32, 2**40 + 7, *range(100, 150)], 11, 4, 1
    spec = PRESETS["byol"][0]._replace(flip=0.3, gray=0.4, blur=0.6, solarize=0.5, jitter=0.7)
    spec = spec._replace(rotate=0.6, sobel=0.5, noise=0.6, noise_sigma=(0.1, 0.3), cutout=0.4)
    size = np.full(len(ids), 32)
    p = params(spec, seed, np.array(ids), epoch, view, size, size)
    flip, jitter, factors, order, gray, blur, sigma, solarize = range(2, 10)
    turn, sobel, noise, noise_sigma, grain, cutout, centre = range(10, 17)
    for i, sample in enumerate(ids):
        words = (seed, sample, epoch, view)
        for name, op in (
            ("flip", flip),
            ("jitter", jitter),
            ("gray", gray),
            ("blur", blur),
            ("solarize", solarize),
            ("sobel", sobel),
            ("noise", noise),
            ("cutout", cutout),
        ):
            assert getattr(p, name)[i] == (plain_rng.uniform(*words, op, 0) < getattr(spec, name)), name
        drawn = [plain_rng.uniform(*words, factors, k) for k in range(4)]
        expected = [0.6 + 0.8 * drawn[0], 0.6 + 0.8 * drawn[1], 0.8 + 0.4 * drawn[2], -0.1 + 0.2 * drawn[3]]
        np.testing.assert_allclose(p.factors[i], expected, rtol=1e-5, atol=1e-7)
        assert p.order[i].tolist() == plain_rng.permutation(4, *words, order)
        assert p.sigma[i] == pytest.approx(0.1 + 1.9 * plain_rng.uniform(*words, sigma, 0))
        turned, way = (plain_rng.uniform(*words, turn, k) for k in range(2))
        assert p.quarters[i] == (1 + int(3 * way) if turned < 0.6 else 0)
        assert p.noise_sigma[i] == pytest.approx(0.1 + 0.2 * plain_rng.uniform(*words, noise_sigma, 0))
        assert p.noise_key[i] == plain_rng.chain(*words, grain)
        assert p.cutout_centre[i] == pytest.approx([plain_rng.uniform(*words, centre, k) for k in range(2)])
        crop = [plain_rng.uniform(*words, 0, k) for k in range(2)]
        area, ratio = 1024 * (0.08 + 0.92 * crop[0]), math.exp(math.log(3 / 4) + math.log(16 / 9) * crop[1])
        height, width = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
        if height <= 32 and width <= 32:
            place = [plain_rng.uniform(*words, 1, k) for k in range(2)]
            corner = [int(place[0] * (33 - height)), int(place[1] * (33 - width))]
            assert p.box[i].tolist() == [*corner, height, width]


def test_solarize_inverts_from_its_level_on() -> None:
    images = np.full((3, 8, 8, 3), [[[[127]]], [[[128]]], [[[129]]]], np.uint8)
    spec = ViewSpec(size=8, crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0), jitter=0.0, solarize=1.0)
    (view,), _ = Views([spec], seed=0, mean=(0, 0, 0), std=(1, 1, 1))(images, np.arange(3), 0)
    np.testing.assert_allclose(view[:, 0, 4, 4] * 255, [127, 127, 126], atol=1e-3)


def test_the_boxes_of_one_batch_vary() -> None:
    _, (geometry, other) = make(ViewSpec(count=2, size=32, recipe="simclr-cifar"))(
        cifar_like(256), np.arange(256), 0
    )
    area = (geometry[:, 2] * geometry[:, 3] / 1024).numpy()
    assert abs(area.std() - 0.92 / np.sqrt(12)) < 0.05  # uniform on [.08, 1]: one draw a batch would give 0
    assert 0.3 < geometry[:, 4].mean() < 0.7
    assert (geometry != other).any(dim=1).all()


def by_hand(image: np.ndarray, p: Params, i: int, spec: Augmentation, size: int) -> Tensor:
    """torchvision (and Pillow, to shrink), one sample at a time, with the drawn parameters."""
    top, left, height, width = map(int, p.box[i])
    if max(image.shape[:2]) <= size:
        x = tv.to_tensor(image)
        x = tv.resized_crop(x, top, left, height, width, [size, size], antialias=True)
    else:
        crop = Image.fromarray(image[top : top + height, left : left + width])
        x = tv.to_tensor(crop.resize((size, size), Image.Resampling.BILINEAR))
    x = tv.hflip(x) if p.flip[i] else x
    x = torch.rot90(x, int(p.quarters[i]), (1, 2))
    jitter = (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue)
    for op in p.order[i] if p.jitter[i] else ():
        x = jitter[op](x, float(p.factors[i, op]))
    if not spec.rand_augment:
        x = tv.rgb_to_grayscale(x, 3) if p.gray[i] else x
    x = tv.gaussian_blur(x, spec.blur_kernel(size), float(p.sigma[i])) if p.blur[i] else x
    if spec.rand_augment:
        for op, level, negative in zip(p.rand[i], p.rand_levels[i], p.rand_negative[i]):
            if op >= 0:
                name = draw.RAND_OPERATIONS[op]
                x = plain_rand_augment.operation(name, x, float(level), bool(negative), [*MEAN])
        x = tv.rgb_to_grayscale(x, 3) if p.gray[i] else x
    x = tv.solarize(x, 128 / 255) if p.solarize[i] else x
    if p.sobel[i]:
        x = filters.sobel_(x[None].clone())[0]
    if p.noise[i]:
        grain = draw.grain(p.noise_key[i : i + 1], x.numel())[0].astype(int) + 2**15
        normal = torch.from_numpy(draw.quantiles()[grain]).float().view_as(x)
        x = (x + float(p.noise_sigma[i]) * normal).clamp(0, 1)
    if p.cutout[i]:
        x, side = x.clone(), round(spec.cutout_size * size)
        top, left = (int(c * size) - side // 2 for c in p.cutout_centre[i])
        x[:, max(0, top) : max(0, top + side), max(0, left) : max(0, left + side)] = torch.tensor(MEAN)[
            :, None, None
        ]
    return tv.normalize(x, MEAN, STD)


@pytest.mark.parametrize(("recipe", "size"), [("simclr-cifar", 32), ("byol", 64), ("mocov2", 40)])
def test_views_equal_torchvision_with_the_drawn_parameters(recipe: str, size: int) -> None:
    sizes = [(32, 32)] * 24 if recipe == "simclr-cifar" else [(80 + i, 100 - i) for i in range(24)]
    images, ids = photos(sizes), np.arange(24) * 1000
    got, geometry = make(ViewSpec(count=2, size=size, recipe=recipe), seed=3)(images, ids, 5)
    heights, widths = np.array(sizes).T
    for view in range(2):
        spec = PRESETS[recipe][view % len(PRESETS[recipe])]
        p = params(spec, 3, ids, 5, view, heights, widths)
        assert (geometry[view].numpy() == np.column_stack([p.box, p.flip])).all()
        expected = torch.stack([by_hand(image, p, i, spec, size) for i, image in enumerate(images)])
        error = (got[view] - expected).abs().flatten(1) * min(STD)
        if recipe == "simclr-cifar":
            assert error.max() < 1e-5
        else:  # shrinking on uint8: some pixels are a level off Pillow's, and jitter may stretch that to a few
            assert error.mean() < 0.06 / 255
            assert (error > 2 / 255).float().mean() < 1e-3


def test_what_is_added_to_a_preset_equals_torchvision_with_the_drawn_parameters() -> None:
    images, ids = cifar_like(96), np.arange(96) + 5
    size = np.full(96, 32)
    for recipe, extra in (("infomin", dict[str, Any]()), ("simclr-cifar", ALL)):
        spec = ViewSpec(size=32, recipe=recipe, **extra)
        ((got,), _), (settings,) = make(spec)(images, ids, 2), spec.augmentations()
        p = params(settings, 0, ids, 2, 0, size, size)
        expected = torch.stack([by_hand(image, p, i, settings, 32) for i, image in enumerate(images)])
        error = (got - expected).abs().flatten(1) * min(STD)
        # RandAugment's steps of levels and maps magnify a rounding; noise and all else do not
        assert error.mean() < 2e-4
        assert (error.amax(dim=1) > 1e-4).sum() <= (10 if recipe == "infomin" else 0)


def test_a_view_without_the_new_operations_is_what_it_was() -> None:
    images, ids = cifar_like(64), np.arange(64)
    plain, _ = make(ViewSpec(count=2, size=32, recipe="byol-cifar"))(images, ids, 0)
    zero: dict[str, Any] = dict.fromkeys(("rotate", "noise", "cutout", "sobel"), 0.0)
    off, _ = make(ViewSpec(count=2, size=32, recipe="byol-cifar", rand_augment=0, **zero))(images, ids, 0)
    on, _ = make(ViewSpec(count=2, size=32, recipe="byol-cifar", cutout=0.5))(images, ids, 0)
    assert all(torch.equal(a, b) for a, b in zip(plain, off))
    same = [(a == b).flatten(1).all(dim=1).float().mean() for a, b in zip(plain, on)]
    assert all(0.2 < share < 0.8 for share in same)  # the other draws are not moved by one that is added


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("recipe", "extra"), [("simclr-cifar", {}), ("byol", {}), ("infomin", {}), ("infomin", ALL)]
)
def test_a_view_is_the_same_bit_for_bit_in_any_batch(recipe: str, extra: dict, dtype: torch.dtype) -> None:
    images, ids = cifar_like(301), np.arange(301) + 7
    views = make(ViewSpec(count=2, size=33, recipe=recipe, **extra), dtype=dtype)  # vector tails: an odd size
    whole, boxes = views(images, ids, 1)
    shuffled = np.random.default_rng(0).permutation(301)
    for rows in (*np.arange(8)[:, None], shuffled[:2], shuffled[:37], shuffled):
        part, part_boxes = views(images[rows], ids[rows], 1)
        for k in range(2):
            assert torch.equal(part[k], whole[k][rows])
            assert torch.equal(part_boxes[k], boxes[k][rows])


def test_threads_do_not_change_a_view() -> None:
    views = make(ViewSpec(count=1, size=224, recipe="simclr"))  # large enough for torch to split one sum
    images, ids = photos([(64, 64)]), np.arange(1)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = [views(images, ids, epoch)[0][0] for epoch in range(3)]
        torch.set_num_threads(2)
        two = [views(images, ids, epoch)[0][0] for epoch in range(3)]
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(one, two))


def test_unequal_images_and_unequal_views() -> None:
    images = photos([(32, 32), (20, 31), (90, 70), (48, 48), (33, 10)])
    ids = np.array([5, 3, 900, 2, 77])
    specs = ViewSpec(count=2, size=48, recipe="simclr"), ViewSpec(count=3, size=24, crop_scale=(0.05, 0.14))
    views = make(*specs)
    whole, geometry = views(images, ids, 0)
    assert [tuple(view.shape) for view in whole] == [(5, 3, 48, 48)] * 2 + [(5, 3, 24, 24)] * 3
    assert all(each.shape == (5, 5) and each.dtype == torch.float32 for each in geometry)
    assert all(view.isfinite().all() for view in whole)
    for i in range(5):  # alone, a sample takes the kernel for batches of one size
        alone, _ = views(images[i : i + 1], ids[i : i + 1], 0)
        assert all(torch.equal(a[0], b[i]) for a, b in zip(alone, whole))


def test_arrays_and_lists_read_only_or_not_give_the_same() -> None:
    for side, size in ((32, 32), (64, 32)):
        images = np.stack(photos([(side, side)] * 6))
        views = make(ViewSpec(count=1, size=size, recipe="simclr"))
        frozen = np.frombuffer(images.tobytes(), np.uint8).reshape(images.shape)
        assert not frozen.flags.writeable
        before = images.copy()
        forms = images, list(images), frozen, list(frozen)
        results = [views(each, np.arange(6), 0)[0][0] for each in forms]
        assert all(torch.equal(results[0], other) for other in results[1:])
        assert (images == before).all()


def test_output_is_channels_last_in_the_dtype() -> None:
    images, ids = cifar_like(9), np.arange(9)
    spec = ViewSpec(count=2, size=32, recipe="byol-cifar")
    wide, _ = make(spec)(images, ids, 0)
    narrow, _ = make(spec, dtype=torch.bfloat16)(images, ids, 0)
    for a, b in zip(wide, narrow):
        assert (a.dtype, b.dtype) == (torch.float32, torch.bfloat16)
        assert a.is_contiguous(memory_format=torch.channels_last)
        assert b.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(a.to(torch.bfloat16), b)
    empty, geometry = make(spec)(images[:0], ids[:0], 0)
    assert (empty[0].shape, geometry[0].shape) == ((0, 3, 32, 32), (0, 5))
    with pytest.raises(ValueError, match="9 images and 8 ids"):
        make(spec)(images, ids[:8], 0)


def test_golden_parameters() -> None:
    """A run's views are part of its identity: these numbers never change."""
    p = params(
        PRESETS["simclr"][0],
        0,
        np.array([0, 1, 12345]),
        2,
        1,
        np.array([32, 32, 375]),
        np.array([32, 32, 500]),
    )
    assert p.box.tolist() == GOLDEN_BOX
    assert p.order.tolist() == GOLDEN_ORDER
    np.testing.assert_allclose(p.factors, GOLDEN_FACTORS, rtol=1e-6)


GOLDEN_BOX = [[1, 5, 19, 22], [1, 5, 18, 16], [17, 67, 264, 213]]
GOLDEN_ORDER = [[1, 3, 2, 0], [2, 1, 3, 0], [2, 0, 1, 3]]
GOLDEN_FACTORS = [
    [0.9675142, 0.5676067, 0.6836566, 0.0137263],
    [1.2950345, 1.6508738, 0.6217706, -0.197812],
    [0.6321762, 0.6537537, 1.5284756, -0.0380695],
]
