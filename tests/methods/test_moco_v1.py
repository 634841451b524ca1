"""What MoCo v1 shares with v2 is tested in test_moco_v2.py."""

import pytest
import torch
from small_methods import small_method, whole
from torch import nn

from vergence.methods.moco_v1 import Embeddings, MoCoV1Config, Targets
from vergence.methods.moco_v2 import MoCoV2Config


def test_published_head_and_defaults() -> None:
    method = small_method("mocov1")
    assert isinstance(method.projector, nn.Linear)
    assert method.projector.bias is not None
    config = MoCoV1Config()
    assert (config.queue_size, config.momentum, config.temperature, config.embed_dim) == (
        65536,
        0.999,
        0.07,
        128,
    )


def test_v2_differs_in_head_and_temperature_and_may_be_symmetric() -> None:
    fields = MoCoV2Config.model_fields
    assert set(fields) - set(MoCoV1Config.model_fields) == {"hidden_dim", "projector_norm", "symmetric"}
    changed = {
        name for name, field in MoCoV1Config.model_fields.items() if field.default != fields[name].default
    }
    assert changed == {"name", "temperature"}


def test_closed_form_of_the_linear_head_s_loss() -> None:
    K, T = 64, 0.2
    method = small_method("mocov1", queue_size=K, embed_dim=65, temperature=T)
    unit = torch.eye(65, dtype=torch.float64)
    method.queue.keys.copy_(unit[1:])
    loss = method.criterion(Embeddings(unit[:1, None]), Targets(unit[:1]), whole(1)).loss
    assert loss.item() == pytest.approx(0.358533, abs=1e-6)
