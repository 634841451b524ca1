import contextlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from shard_files import png, write_shard
from torch import Tensor, nn

from vergence.platform.data.captions import Captions
from vergence.platform.data.index import open_index
from vergence.platform.evaluate import zero_shot
from vergence.platform.evaluate.config import MonitorConfig
from vergence.platform.evaluate.monitor import Monitor
from vergence.platform.evaluate.sweep import Sweep
from vergence.platform.evaluate.zero_shot import ZeroShot

NAMES = ("red", "green", "blue")
TEMPLATES = ("{class}", "a {class} one")


class Colours(nn.Module):
    """Puts a text where the colour that it names is; `wrong` turns the colours round, a long text shifts it."""

    def __init__(self, wrong: int = 0) -> None:
        super().__init__()
        self.wrong = wrong

    def embed_images(self, h: Tensor) -> Tensor:
        assert not self.training
        return h * 7

    def embed_text(self, fields: Mapping[str, Tensor]) -> Tensor:
        texts = [bytes(r[:n].tolist()).decode() for r, n in zip(fields["text"], fields["text.length"])]
        colours = [next(i for i, name in enumerate(NAMES) if name in text) for text in texts]
        long = torch.tensor([[len(text) > 5] for text in texts])
        t = torch.eye(3)[[(c + self.wrong) % 3 for c in colours]]
        return torch.where(long, t * 9, t + 0.5)


def score(method: Colours, features: np.ndarray, labels: np.ndarray) -> float:
    captions = Captions(TEMPLATES, NAMES)
    return float((ZeroShot(method, captions, torch.device("cpu"))(features) == labels).mean())


@pytest.mark.parametrize("texts", [512, 4, 1])
def test_an_image_is_of_the_class_whose_captions_are_nearest(
    texts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zero_shot, "TEXTS", texts)
    labels = np.array([0, 1, 2, 2])
    features = np.eye(3, dtype=np.float32)[[0, 1, 2, 0]] + 0.1
    assert score(Colours(), features, labels) == 0.75
    assert score(Colours(wrong=1), features, labels) == 0.25


def test_a_class_stands_where_the_mean_of_its_unit_captions_points_to() -> None:
    captions = Captions(TEMPLATES, NAMES)
    judge = ZeroShot(Colours(), captions, torch.device("cpu"))
    [fields] = judge._texts()
    red = torch.tensor([1.5, 0.5, 0.5])
    mean = red / red.norm() + torch.tensor([1.0, 0.0, 0.0])
    torch.testing.assert_close(judge._directions(fields)[0], mean / mean.norm())


def test_the_method_is_in_the_mode_it_was_in() -> None:
    method = Colours()
    score(method.train(), np.eye(3, dtype=np.float32), np.arange(3))
    assert method.training


def test_the_monitor_tells_it_beside_the_knn(tmp_path: Path) -> None:
    colours = np.repeat(np.eye(3, dtype=np.uint8) * 200, 4, axis=0)
    samples = [
        (f"{i:02d}", {"png": png(np.tile(colour, (8, 8, 1))), "cls": b"%d" % (i // 4)})
        for i, colour in enumerate(colours)
    ]
    index = open_index(write_shard(tmp_path / "a.tar", samples), tmp_path / "index")
    holdout = Sweep(
        index,
        np.arange(12),
        size=8,
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        device=torch.device("cpu"),
        threads=1,
        keep=True,
    )

    class Mean(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mean((2, 3))

    for wrong, expected in ((0, 1.0), (1, 0.0)):
        judge = ZeroShot(Colours(wrong), Captions(TEMPLATES, NAMES), torch.device("cpu"))
        metrics = Monitor(MonitorConfig(), holdout, judge)(Mean(), contextlib.nullcontext)
        assert metrics["zero_shot"] == expected
    assert "zero_shot" not in Monitor(MonitorConfig(), holdout)(Mean(), contextlib.nullcontext)
