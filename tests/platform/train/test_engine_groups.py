"""Parameter groups under the engine: what is frozen, thaws, or learns at a rate of its own."""

from typing import Any

import numpy as np
import pytest
import torch
from ranks import import_deepspeed, run_ranks
from small_engine import (
    STAGES,
    Arrays,
    Net,
    arrays,
    assert_same,
    engine_of,
    inputs,
    make,
    reference,
    train,
)

from vergence.platform.train.optim.config import GroupConfig, OptimConfig
from vergence.platform.train.schedule import ScheduleConfig

UNGROUPED = ("sgd", "adamw", "clipped", "lars")
THAW = 2  # steps, and in these tests epochs, for which the head is frozen


@pytest.fixture(scope="module", autouse=True)
def _deepspeed_imported_once() -> None:
    import_deepspeed()


def _frozen_head(rank: int, world: int, todo: list[tuple[str, int]]) -> list[dict[str, Any]]:
    """States of a run of THAW + 3 steps, from its start and from an earlier run's moments; resumed at every step."""
    results = []
    for optim, zero in todo:
        rules = (GroupConfig(match="head.*", frozen_until=THAW),)
        old = make(optim, zero)
        train(old, range(5, 7), rank, world)
        engine, forked = make(optim, zero, groups=rules), make(optim, zero, groups=rules)
        forked.load_state(old.state())
        states = [arrays(engine.state())]
        for step in range(THAW + 3):
            train(engine, range(step, step + 1), rank, world, num_micros=1)
            states.append(arrays(engine.state()))
        for step in range(1, THAW + 3):
            resumed = make(optim, zero, groups=rules)
            resumed.load_state({name: torch.from_numpy(value.copy()) for name, value in states[step].items()})
            train(resumed, range(step, THAW + 3), rank, world, num_micros=1)
            assert_same(arrays(resumed.state()), states[-1], f"{optim}, stage {zero}, resumed at {step}")
        train(forked, range(THAW), rank, world)
        while_frozen = arrays(forked.state())
        train(forked, range(THAW, THAW + 3), rank, world)
        results.append(
            {
                "states": states,
                "old": arrays(old.state()),
                "frozen": while_frozen,
                "forked": arrays(forked.state()),
            }
        )
    return results


def test_a_frozen_group_is_to_the_optimiser_as_if_it_had_no_gradient() -> None:
    todo = [(optim, zero) for optim in UNGROUPED for zero in STAGES if optim != "lars" or zero == 0]
    for (optim, zero), result in zip(todo, run_ranks(_frozen_head, 2, todo)[0]):
        what, states = f"{optim}, stage {zero}", result["states"]
        for steps in (THAW, THAW + 1, THAW + 3):
            for name, value in reference(optim, steps, thaw=THAW)[0].items():
                np.testing.assert_allclose(states[steps][name], value, atol=1e-5, err_msg=f"{what}: {name}")
        for name, value in reference(optim, THAW + 3, THAW, result["old"])[0].items():
            np.testing.assert_allclose(result["forked"][name], value, atol=1e-5, err_msg=f"{what}: {name}")
        head = [name for name in states[0] if ".head." in name]
        assert len(head) >= 4
        for name in head:
            assert np.array_equal(states[THAW][name], states[0][name]), f"{what}: {name}"
            assert np.array_equal(result["frozen"][name], result["old"][name]), f"{what}: {name}"
        assert not np.array_equal(states[THAW + 1]["model.head.weight"], states[0]["model.head.weight"])


def test_the_first_steps_after_the_thaw_are_as_long_as_those_of_a_fresh_start() -> None:
    """Adam's bias correction is not spent while frozen: with a constant gradient every step has length lr."""
    (lengths,) = run_ranks(_step_lengths, 1)
    np.testing.assert_allclose(lengths[0], [0.0] * 50 + [1.0] * 4, rtol=1e-3)
    np.testing.assert_allclose(lengths[1], lengths[0], rtol=1e-6)


def _step_lengths(rank: int, world: int) -> list[list[float]]:
    lengths = []
    for zero in (0, 2):
        rules = (GroupConfig(match="head.*", frozen_until=50.0), GroupConfig(match="encoder.*", lr=0.0))
        config = OptimConfig(name="adamw", lr=0.01, rule="none", weight_decay=0.0, groups=rules)
        engine = engine_of(Net(), config, zero, schedule=ScheduleConfig(shape="constant"), epochs=64)
        own: list[float] = []
        for step in range(54):
            before = engine.module.head.bias.detach().clone()
            engine.backward(engine.module.head.bias.sum() + 0 * engine.module(inputs(0)), True)
            engine.set_progress(step / 64)
            assert engine.step()
            own.append((before - engine.module.head.bias).max().item() / engine.lr)
        lengths.append(own)
    return lengths


def _groups(rank: int, world: int) -> list[Arrays]:
    states = []
    for zero in STAGES:
        engine = make("sgd", zero, groups=(GroupConfig(match="encoder.0.*", lr=0.0),))
        train(engine, range(2), rank, world)
        states.append(arrays(engine.state()))
    return states


def test_a_group_has_its_own_learning_rate() -> None:
    start = {f"model.{n}": v.numpy() for n, v in Net().state_dict().items()}
    for state in run_ranks(_groups, 2)[0]:
        assert np.array_equal(state["model.encoder.0.weight"], start["model.encoder.0.weight"])
        assert not np.array_equal(state["model.encoder.3.weight"], start["model.encoder.3.weight"])
