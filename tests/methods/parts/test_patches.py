from typing import Any

import pytest
import torch
from plain_rand_augment import BILINEAR, tv
from small_methods import ToyEncoder, normal
from torch import Tensor

from vergence.methods.parts.patches import GridConfig, GridEncoder, PatchAugmentation, augmented
from vergence.methods.parts.sequences import Counter


def draws(n: int, first: int = 0, progress: float = 0.25) -> Counter:
    return Counter(torch.tensor(7), torch.arange(first, first + n), progress)


def patches(n: int = 4) -> Tensor:
    return normal(n, 3, 3, 3, 6, 6)


def test_patches_lie_where_rows_and_columns_say_and_the_representation_is_their_mean() -> None:
    encoder, images = GridEncoder(ToyEncoder().double(), 6, GridConfig(patch=4, stride=2)), normal(2, 3, 9, 9)
    cut = encoder.cut(images)
    assert cut.shape == (2, 3, 3, 3, 4, 4)
    assert torch.equal(cut[:, 2, 1], images[:, :, 4:8, 2:6])
    grid = encoder.features(images)
    torch.testing.assert_close(grid[:, :, 2, 1], encoder.backbone(images[:, :, 4:8, 2:6]))
    torch.testing.assert_close(encoder(images), grid.mean(dim=(2, 3)))
    with pytest.raises(ValueError, match="an image of 3 pixels holds no patch of 4"):
        encoder.cut(images[..., :3, :3])


@pytest.mark.parametrize(
    "settings",
    [
        {"shift": 2, "flip": 0.5, "drop_colours": 0.5, "brightness": 0.5, "contrast": 0.5},
        {"shear": 20, "warp": 1},
        {"elastic": 1, "warp": 1},
    ],
)
def test_each_patch_draws_for_itself_from_sample_view_and_progress(settings: dict[str, Any]) -> None:
    x, how = patches(8), PatchAugmentation.model_validate(settings)
    same = augmented(x, how, draws(8))
    assert torch.equal(augmented(x[3:5], how, draws(2, first=3)), same[3:5])
    alike = x[:1, :1, :1].expand_as(x)
    made = augmented(alike, how, draws(8)).flatten(0, 2).flatten(1)
    assert len(made.unique(dim=0)) == len(made)
    assert not torch.equal(augmented(x, how, draws(8), view=1), same)
    assert not torch.equal(augmented(x, how, draws(8, progress=0.5)), same)
    assert torch.equal(augmented(x, PatchAugmentation(), draws(8)), x + 0)


def test_a_shifted_patch_is_a_crop_in_the_middle_of_zeros_wherever_it_was() -> None:
    x = patches(40)
    made = augmented(x, PatchAugmentation(shift=2), draws(40))
    middle = made[..., 1:5, 1:5]
    torch.testing.assert_close(made.abs().sum(), middle.abs().sum())
    places = torch.stack([x[..., i : i + 4, j : j + 4] for i in range(3) for j in range(3)])
    found = (places - middle).abs().amax(dim=(-3, -2, -1)) < 1e-6
    assert found.sum(dim=0).eq(1).all()
    assert (found.double().mean(dim=(1, 2, 3)) - 1 / 9).abs().max() < 0.06
    with pytest.raises(ValueError, match="a patch of 6 pixels cannot be cropped by 6"):
        augmented(x, PatchAugmentation(shift=6), draws(40))


def test_flips_colours_and_shades_have_the_asked_for_shares_and_ranges() -> None:
    x = patches(60)
    flipped = augmented(x, PatchAugmentation(flip=0.3), draws(60))
    mirrored = (flipped - x.flip(-1)).abs().amax(dim=(-3, -2, -1)) < 1e-6
    assert mirrored.double().mean().item() == pytest.approx(0.3, abs=0.06)
    kept = (augmented(x, PatchAugmentation(drop_colours=0.8), draws(60)).abs().sum(dim=(-2, -1)) > 1e-6).sum(
        -1
    )
    assert set(kept.unique().tolist()) == {1, 3}
    assert (kept == 1).double().mean().item() == pytest.approx(0.8, abs=0.05)
    shades = augmented(torch.zeros_like(x), PatchAugmentation(brightness=0.5), draws(60))[..., 0, 0, 0]
    assert (shades.min() < -0.45, shades.max() > 0.45, shades.abs().max() <= 0.5) == (True, True, True)
    spread = augmented(x, PatchAugmentation(contrast=0.5), draws(60))
    ratio = spread.std(dim=(-3, -2, -1)) / x.std(dim=(-3, -2, -1))
    assert 0.5 <= ratio.min() < 0.55
    assert 1.45 < ratio.max() <= 1.5
    torch.testing.assert_close(spread.mean(dim=(-3, -2, -1)), x.mean(dim=(-3, -2, -1)))


def ramps(n: int, side: int) -> Tensor:
    """Patches that show how far to the right, and down, of the middle a pixel is; the third colour is anything."""
    place = torch.arange(side, dtype=torch.float64) - (side - 1) / 2
    x = normal(n, 3, 3, 3, side, side)
    x[..., 0, :, :], x[..., 1, :, :] = place, place[:, None]
    return x


def test_a_shear_is_torchvision_s_by_two_angles_of_each_patch() -> None:
    x = ramps(8, 13).flatten(0, 2)
    made = augmented(ramps(8, 13), PatchAugmentation(shear=20, warp=1), draws(8)).flatten(0, 2)
    leaning = (made[:, 0, 7, 6] - made[:, 0, 5, 6]) / 2, (made[:, 1, 6, 7] - made[:, 1, 6, 5]) / 2
    angles = torch.rad2deg(torch.atan(torch.stack(leaning, dim=1)))
    for image, got, pair in zip(x, made, angles.tolist(), strict=True):
        expected = tv.affine(image, 0.0, [0, 0], 1.0, pair, interpolation=BILINEAR)
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-9)
    assert len(angles.unique()) == 2 * len(x)
    assert 19 < angles.abs().max() < 20 + 1e-9
    assert angles.mean(dim=0).abs().max() < 4
    assert angles.T.corrcoef()[0, 1].abs() < 0.3


def test_an_elastic_deformation_is_smooth_between_displacements_of_the_asked_for_size() -> None:
    how, side = PatchAugmentation(elastic=0.5, warp=1), 13
    moved = (augmented(ramps(40, side), how, draws(40)) - ramps(40, side)).flatten(0, 2)[:, :2, 2:-2, 2:-2]
    nodes = moved[:, :, 2::4, 2::4].flatten(2).transpose(0, 1)  # (2, m, 4): right and down, at 4 of 16 places
    assert (nodes.std(dim=(1, 2)) / 0.5 - 1).abs().max() < 0.1
    assert nodes.mean(dim=(1, 2)).abs().max() < 0.05
    unlike = nodes.transpose(1, 2).flatten(0, 1).corrcoef() - torch.eye(8, dtype=torch.float64)
    assert unlike.abs().max() < 0.2
    bends = moved.diff(n=2, dim=-1).abs().mean() / moved.abs().mean()
    assert 0.05 < bends < 0.5  # of white noise: 3 ** 0.5 and more


def test_a_share_of_the_patches_is_warped_and_the_others_stay_bit_equal() -> None:
    x = patches(60)
    for settings, share in (({"shear": 15}, 0.2), ({"elastic": 1}, 0.2), ({"shear": 15, "elastic": 1}, 0.36)):
        made = augmented(x, PatchAugmentation.model_validate(settings), draws(60))
        kept = (made == x).flatten(3).all(dim=3)
        assert 1 - kept.double().mean().item() == pytest.approx(share, abs=0.05)
    assert torch.equal(augmented(x, PatchAugmentation(shear=15, elastic=1, warp=0), draws(60)), x)


def test_warps_leave_the_other_draws_as_they_are() -> None:
    gray, how = torch.zeros_like(patches(8)), {"shift": 2, "brightness": 0.5, "drop_colours": 0.5}
    plain, warped = (
        augmented(gray, PatchAugmentation.model_validate(how | more), draws(8))
        for more in ({}, {"shear": 30, "elastic": 2, "warp": 1})
    )
    assert plain.any()
    assert torch.equal(plain, warped)


def test_half_precision_is_warped_between_pixels_in_full() -> None:
    how, x = PatchAugmentation(shear=20, elastic=1, warp=1), ramps(2, 64)
    made = augmented(x.bfloat16(), how, draws(2))
    assert made.dtype == torch.bfloat16
    expected = augmented(x.bfloat16().double(), how, draws(2))
    torch.testing.assert_close(made.double(), expected, rtol=0.005, atol=0.02)
