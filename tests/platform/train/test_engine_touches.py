"""What the engine does to single parameters: clipping each by itself, and weights that others set anew."""

from typing import Any

import numpy as np
import pytest
import torch
from ranks import import_deepspeed, run_ranks
from small_engine import EPOCHS, FALLING, STAGES, Arrays, Net, arrays, assert_same, inputs, make, train

LARGEST = 0.02


@pytest.fixture(scope="module", autouse=True)
def _deepspeed_imported_once() -> None:
    import_deepspeed()


def _clipped(rank: int, world: int) -> list[Arrays]:
    states = []
    for zero in STAGES:
        engine = make("sgd", zero, clip_each=LARGEST)
        train(engine, range(3), rank, world)
        states.append(arrays(engine.state()))
    return states


def plain() -> dict[str, torch.Tensor]:
    """DINO's utils.clip_gradients before each step of SGD, in one process on the whole batch."""
    net = Net()
    trained = {name: p for name, p in net.named_parameters() if p.requires_grad}
    optimizer = torch.optim.SGD(trained.values(), lr=0.1, momentum=0.9, weight_decay=0.01)
    clipped = set()
    for step in range(3):
        optimizer.zero_grad()
        net(inputs(step)).backward()
        for name, p in trained.items():
            assert p.grad is not None
            coefficient = LARGEST / (p.grad.norm(2) + 1e-6)
            if coefficient < 1:
                p.grad.mul_(coefficient)
                clipped.add(name)
        optimizer.param_groups[0]["lr"] = 0.1 * FALLING.at(step / EPOCHS, EPOCHS)
        optimizer.step()
    assert len(clipped) > 0
    return {f"model.{name}": p.detach() for name, p in trained.items()}


def test_each_parameter_is_clipped_by_itself_at_every_stage() -> None:
    expected = plain()
    for world in (1, 2):
        for state in run_ranks(_clipped, world)[0]:
            for name, value in expected.items():
                np.testing.assert_allclose(state[name], value, rtol=1e-4, atol=1e-6, err_msg=name)


def _renewed(rank: int, world: int) -> list[Arrays]:
    """Two steps, new weights of the head, what is there then, and the state a step later."""
    states = []
    for zero in STAGES:
        engine = make("sgd", zero)
        train(engine, range(2), rank, world, num_micros=1)
        head: Any = engine.module.head
        with torch.no_grad():
            head.weight.fill_(0.01)
        engine.renew([head.weight])
        states.append(arrays(engine.state()))
        train(engine, range(2, 3), rank, world, num_micros=1)
        states.append(arrays(engine.state()))
    return states


def test_weights_that_were_set_anew_stay_and_their_moments_are_zero_at_every_stage() -> None:
    for world in (1, 2):
        ranks = run_ranks(_renewed, world)
        for found in ranks:
            for k, zero in enumerate(STAGES):
                set_anew, later = found[2 * k : 2 * k + 2]
                assert not set_anew["optim.head.weight.momentum_buffer"].any()
                assert set_anew["optim.head.bias.momentum_buffer"].any()
                assert set_anew["optim.encoder.0.weight.momentum_buffer"].any()
                assert (set_anew["model.head.weight"] == np.float32(0.01)).all()
                # one step on from there: as far as the new momentum says
                step = later["optim.head.weight.momentum_buffer"] * (0.1 * FALLING.at(0.2, EPOCHS))
                np.testing.assert_allclose(later["model.head.weight"], 0.01 - step, atol=1e-7)
                assert_same(later, found[1], f"stage {zero}")
