import numpy as np
import torch

from vergence.methods.parts.maps import MapConfig, MapNetwork, cropped, read
from vergence.platform.augment.presets import ViewSpec
from vergence.platform.augment.views import Views


def test_a_map_is_cropped_as_its_picture() -> None:
    """A picture that says where each of its pixels lies, and a map that says the same, through real views."""
    rows, columns = np.mgrid[0:40, 0:56].astype(np.uint8)
    picture = np.stack([rows * 6, columns * 4, np.zeros_like(rows)], axis=-1)
    ids = np.arange(24)
    spec = ViewSpec(count=2, size=20, crop_scale=(0.2, 1.0), flip=0.5)
    views = Views([spec], seed=3, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    maps = torch.from_numpy(picture[None, ..., :2].repeat(24, axis=0))
    seen, geometry = views([picture] * 24, ids, 0)
    assert {float(each[:, 4].mean()) for each in geometry} not in ({0.0}, {1.0})  # some are mirrored
    for view, where in zip(seen, geometry):
        crop = cropped(maps, where, 20).permute(0, 3, 1, 2).float()
        difference = (view[:, :2] * 255 - crop).abs()[..., 1:-1, 1:-1]
        assert difference.max() < 2 * 6  # the nearest pixel against a mean of some
        assert difference.mean() < 4


def test_values_are_quantities_or_classes_and_zero_where_unknown() -> None:
    values = torch.tensor([[[0, 254], [127, 255]], [[255, 255], [255, 255]]], dtype=torch.uint8)
    x, known = read(values, MapConfig(name="depth"), torch.float64)
    assert x[0, 0].tolist() == [[-1, 1], [0, 0]]
    assert not x[1].any()
    assert known.tolist() == [True, False]
    x, known = read(values.clamp(max=2) * 1, MapConfig(name="classes", classes=3), torch.float64)
    assert x.shape == (2, 3, 2, 2)
    assert x[0].argmax(dim=0).tolist() == [[0, 2], [2, 2]]
    assert (x.sum(dim=1) == 1).all()
    x, _ = read(values, MapConfig(name="classes", classes=3), torch.float64)
    assert x[0].sum(dim=0).tolist() == [[1, 1], [1, 0]]


def test_a_network_sees_each_map_by_itself() -> None:
    torch.manual_seed(0)
    network = MapNetwork(3, 16).double()
    x = torch.randn(4, 3, 20, 20, dtype=torch.float64)
    assert network(x).shape == (4, 16)
    torch.testing.assert_close(network(x)[1:2], network(x[1:2]))
