"""A small encoder with running statistics of its own, and its card."""

from typing import Any

import torch

from vergence.methods.method import Encoder
from vergence.methods.parts.backbones import EncoderConfig, build_encoder
from vergence.platform.encoders.export import EncoderCard

CONFIG = EncoderConfig(name="resnet18", stem="cifar", width=0.25)
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


def make_card(**changes: Any) -> EncoderCard:
    values = {
        "name": "tiny",
        "method": "simclr",
        "backbone": CONFIG.model_dump(),
        "dim": 128,
        "size": 16,
        "mean": MEAN,
        "std": STD,
        "images_seen": 1000,
        "recipe_digest": "a1",
        "data_digest": "b2",
        "code_version": "0.1.0",
        "metrics": {"knn": 0.5},
    }
    return EncoderCard(**values | changes)


def make_encoder() -> Encoder:
    """As after training: running statistics that are not 0 and 1."""
    torch.manual_seed(0)
    encoder = build_encoder(CONFIG)
    for _ in range(3):
        encoder(torch.rand(16, 3, 16, 16))
    return encoder
