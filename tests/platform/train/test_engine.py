"""The engine at ZeRO stages 0, 1, 2 against plain torch in one process, and its state by name."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from ranks import import_deepspeed, run_ranks
from torch import Tensor, nn

from vergence.methods.schedule import Schedule
from vergence.platform.errors import UserError
from vergence.platform.train.engine import Engine, expected_state
from vergence.platform.train.optim.config import GroupConfig, OptimConfig
from vergence.platform.train.optim.lars import LARS
from vergence.platform.train.schedule import ScheduleConfig

N, STAGES = 12, (0, 1, 2)
OPTIMS = {
    "sgd": OptimConfig(name="sgd", lr=0.1, rule="none", weight_decay=0.01),
    "adamw": OptimConfig(name="adamw", lr=0.01, rule="none", weight_decay=0.1),
    "clipped": OptimConfig(name="sgd", lr=0.1, rule="none", clip=0.05),
    "lars": OptimConfig(name="lars", lr=1.0, rule="none", trust=0.1, weight_decay=0.01),
    "scheduled": OptimConfig(
        name="adamw",
        lr=0.01,
        rule="none",
        weight_decay=Schedule(peak=0.1, end=2.0, shape="linear"),
        groups=(GroupConfig(match="head.*", schedule=ScheduleConfig(shape="constant")),),
    ),
}
UNGROUPED = ("sgd", "adamw", "clipped", "lars")
FALLING = ScheduleConfig(shape="linear")
EPOCHS = 10  # of one step each
Arrays = dict[str, np.ndarray]


@pytest.fixture(scope="module", autouse=True)
def _deepspeed_imported_once() -> None:
    import_deepspeed()


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Sequential(
            nn.Conv2d(3, 5, 3), nn.GroupNorm(1, 5), nn.ReLU(), nn.Conv2d(5, 4, 3), nn.Flatten()
        )
        self.head = nn.Linear(64, 3)
        self.teacher = nn.Linear(2, 2).requires_grad_(False)
        self.register_buffer("queue", torch.arange(4.0))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x)).square().mean()


def inputs(step: int) -> Tensor:
    generator = torch.Generator().manual_seed(step)
    scale = torch.linspace(0.5, 2, N).view(-1, 1, 1, 1)
    return torch.randn(N, 3, 8, 8, generator=generator) * scale


def engine_of(net: nn.Module, config: OptimConfig, zero: int, **changes: Any) -> Engine:
    settings = {"schedule": FALLING, "epochs": EPOCHS, "precision": "fp32", **changes}
    return Engine(net, config, global_batch=N, zero=zero, device=torch.device("cpu"), **settings)


def make(optim: str, zero: int, **changes: Any) -> Engine:
    return engine_of(Net(), OptimConfig(**{**OPTIMS[optim].model_dump(), **changes}), zero)


def train(
    engine: Engine, steps: range, rank: int, world: int, num_micros: int = 2
) -> list[tuple[float, float]]:
    """Micro-batches of this rank's share, each scaled so that their sum is the share's mean."""
    norms = []
    for step in steps:
        share = inputs(step).chunk(world)[rank]
        for i, micro in enumerate(share.chunk(num_micros)):
            loss = engine.module(micro.contiguous(memory_format=torch.channels_last)) / num_micros
            engine.backward(loss, i == num_micros - 1)
        engine.set_progress(step / EPOCHS)
        all_norm, first_norm = engine.grad_norms()
        norms.append((all_norm.item(), first_norm.item()))
        assert engine.step()
    return norms


def arrays(state: dict[str, Tensor]) -> Arrays:
    return {name: value.numpy() for name, value in state.items()}


def assert_same(a: Arrays, b: Arrays, what: str) -> None:
    assert a.keys() == b.keys()
    differing = [name for name in a if not np.array_equal(a[name], b[name])]
    assert not differing, f"{what}: {differing}"


def reference(
    optim: str, steps: int, thaw: int = 0, start: Arrays | None = None
) -> tuple[Arrays, list[tuple[float, float]]]:
    """Plain torch: one process, the whole batch at once, unfused optimiser; its state, and gradient norms.

    The head's gradient is None before step `thaw`. start: state to begin with, instead of a fresh one.
    """
    net, config, norms = Net(), OPTIMS[optim], []
    weights = [net.encoder[0].weight, net.encoder[3].weight, net.head.weight]
    others = [p for p in net.parameters() if p.requires_grad and all(p is not w for w in weights)]
    if optim == "adamw":
        groups = [{"params": weights, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
        optimizer: Any = torch.optim.AdamW(groups, lr=config.lr, fused=False, foreach=False)
    elif optim == "lars":
        groups = [{"params": weights, "weight_decay": 0.01}, {"params": others, "adapt": False}]
        optimizer = LARS(groups, lr=config.lr, trust=config.trust)
    elif optim == "scheduled":
        head = {"params": [net.head.weight], "decays": True, "constant": True}
        head_bias = {"params": [net.head.bias], "weight_decay": 0.0, "constant": True}
        rest = {"params": [p for p in others if p is not net.head.bias], "weight_decay": 0.0}
        groups = [{"params": weights[:2], "decays": True}, head, rest, head_bias]
        optimizer = torch.optim.AdamW(groups, lr=config.lr, fused=False, foreach=False)
    else:
        optimizer = torch.optim.SGD(
            weights + others, lr=config.lr, momentum=0.9, weight_decay=config.weight_decay, foreach=False
        )
    names = {parameter: name for name, parameter in net.named_parameters() if parameter.requires_grad}
    if start is not None:
        values = {name: torch.from_numpy(value.copy()) for name, value in start.items()}
        net.load_state_dict({name: values[f"model.{name}"] for name in net.state_dict()})
        for parameter, name in names.items():
            own = [key for key in values if key.startswith(f"optim.{name}.")]
            optimizer.state[parameter] = {key.rpartition(".")[2]: values[key] for key in own}
    for step in range(steps):
        optimizer.zero_grad()
        net(inputs(step)).backward()
        if step < thaw:
            net.head.zero_grad(set_to_none=True)
        gradients = [p.grad for p in weights + others if p.grad is not None]
        norms.append(
            (torch.cat([g.flatten() for g in gradients]).norm().item(), weights[0].grad.norm().item())
        )
        if config.clip:
            nn.utils.clip_grad_norm_(weights + others, config.clip)
        for group in optimizer.param_groups:
            group["lr"] = config.lr * (1 if group.get("constant") else 1 - step / 10)
            if group.get("decays"):
                group["weight_decay"] = 0.1 + 1.9 * step / 10
        optimizer.step()
    state = {f"model.{n}": v for n, v in net.state_dict().items()}
    for parameter, slots in optimizer.state.items():
        state |= {f"optim.{names[parameter]}.{slot}": v for slot, v in slots.items()}
    return arrays(state), norms


def _train_all(rank: int, world: int, todo: list[tuple[str, int]]) -> list[tuple[Arrays, list]]:
    results = []
    for optim, zero in todo:
        engine = make(optim, zero)
        norms = train(engine, range(3), rank, world)
        results.append((arrays(engine.state()), norms))
    return results


def test_three_steps_equal_plain_torch_at_every_stage() -> None:
    todo = [(optim, zero) for optim in OPTIMS for zero in STAGES if optim != "lars" or zero == 0]
    for results in run_ranks(_train_all, 2, todo):
        for (optim, zero), (state, norms) in zip(todo, results):
            expected, expected_norms = reference(optim, 3)
            for name, value in expected.items():
                np.testing.assert_allclose(
                    state[name], value, atol=1e-5, err_msg=f"{optim}, stage {zero}: {name}"
                )
            np.testing.assert_allclose(norms, expected_norms, rtol=1e-5)
            moved = np.abs(expected["model.head.weight"] - Net().head.weight.detach().numpy()).max()
            assert moved > 1e-3  # the comparison is not one of standing still


def _stage_pairs(rank: int, world: int, optim: str) -> Arrays:
    # One backward a step: stage 2 reduces at each, so that several add up in another order.
    saved, undisturbed = {}, {}
    for zero in STAGES:
        engine = make(optim, zero)
        train(engine, range(2), rank, world, num_micros=1)
        saved[zero] = copy.deepcopy(engine.state())
        train(engine, range(2, 5), rank, world, num_micros=1)
        undisturbed[zero] = arrays(engine.state())
    for old in STAGES:
        for new in STAGES:
            engine = make(optim, new)
            engine.load_state(saved[old])
            assert_same(arrays(engine.state()), arrays(saved[old]), f"{optim}: loaded {old} -> {new}")
            train(engine, range(2, 5), rank, world, num_micros=1)
            assert_same(arrays(engine.state()), undisturbed[old], f"{optim}: continued {old} -> {new}")
    return arrays(saved[1])


def _reload(rank: int, world: int, optim: str, state: Arrays) -> Arrays:
    results = []
    for zero in STAGES:
        engine = make(optim, zero)
        engine.load_state({name: torch.from_numpy(value) for name, value in state.items()})
        results.append(arrays(engine.state()))
        assert_same(results[-1], state, f"{optim}: {world} ranks, stage {zero}")
    return results[0]


@pytest.mark.parametrize("optim", ["sgd", "adamw"])
def test_state_by_name_is_bit_equal_across_stages_and_world_sizes(optim: str) -> None:
    states = run_ranks(_stage_pairs, 2, optim)
    assert_same(states[0], states[1], "ranks")
    slots = {"sgd": {"momentum_buffer"}, "adamw": {"step", "exp_avg", "exp_avg_sq"}}[optim]
    assert {
        name.rpartition(".")[2] for name in states[0] if name.startswith("optim.encoder.0.weight")
    } == slots
    assert states[0]["model.encoder.0.weight"].shape == (5, 3, 3, 3)
    assert not any(name.startswith("optim.teacher") for name in states[0])
    for world in (1, 3):
        run_ranks(_reload, world, optim, states[0])


def _nan_on_one_rank(rank: int, world: int) -> None:
    for zero in STAGES:
        clean, engine = make("adamw", zero), make("adamw", zero)
        train(clean, range(4), rank, world)
        train(engine, range(2), rank, world)
        before = arrays(engine.state())
        loss = engine.module(inputs(9).chunk(world)[rank])
        engine.backward(loss, False)
        engine.backward(
            engine.module(inputs(8).chunk(world)[rank]) * (float("nan") if rank == 1 else 1.0), True
        )
        assert not engine.step()
        assert_same(arrays(engine.state()), before, f"skipped at stage {zero}")
        engine.backward(engine.module(inputs(7).chunk(world)[rank]), False)
        engine.zero_grad()  # a step given up half way
        train(engine, range(2, 4), rank, world)
        assert_same(arrays(engine.state()), arrays(clean.state()), f"after the skip at stage {zero}")


def test_nan_on_one_rank_skips_the_step_on_all_and_leaves_no_trace() -> None:
    run_ranks(_nan_on_one_rank, 2)


def _first_state(rank: int, world: int) -> Arrays:
    net = Net()
    with torch.no_grad():
        net.queue += rank
        net.head.weight += rank
    engine = engine_of(net, OPTIMS["sgd"], 0)
    return arrays(engine.state())


def test_parameters_and_buffers_start_as_on_rank_0() -> None:
    first, second = run_ranks(_first_state, 2)
    assert_same(first, second, "start")
    np.testing.assert_array_equal(second["model.queue"], np.arange(4.0))


THAW = 2  # steps, and in these tests epochs, for which the head is frozen


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


def _before_and_after(rank: int, world: int) -> None:
    engine = make("sgd", 0)
    assert engine.module.encoder[0].weight.is_contiguous(memory_format=torch.channels_last)
    state = engine.state()
    before = copy.deepcopy(arrays(state))
    train(engine, range(1), rank, world)
    assert_same(arrays(state), before, "state of before")


def test_weights_are_channels_last_and_the_state_is_a_copy() -> None:
    run_ranks(_before_and_after, 1)


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


def _float32_products(rank: int, world: int) -> list[tuple[bool, str]]:
    torch.set_float32_matmul_precision("high")
    chosen = []
    for precision in ("bf16", "fp32"):
        engine_of(Net(), OPTIMS["sgd"], 0, precision=precision)
        chosen.append((torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()))
    return chosen


def test_fp32_is_fp32_inside_convolutions_and_products() -> None:
    assert run_ranks(_float32_products, 1) == [[(True, "high"), (False, "highest")]]


def _alone(rank: int, world: int) -> Arrays:
    """Without a process group: the engine makes its own of one rank."""
    torch.distributed.destroy_process_group()
    engine = make("sgd", 1)
    train(engine, range(3), 0, 1)
    return arrays(engine.state())


def test_works_without_a_process_group() -> None:
    (state,) = run_ranks(_alone, 1)
    expected, _ = reference("sgd", 3)
    for name, value in expected.items():
        np.testing.assert_allclose(state[name], value, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("optim", ["sgd", "adamw"])
def test_expected_state_has_the_names_and_shapes_of_the_state(optim: str) -> None:
    (state,) = run_ranks(_first_state_of, 1, optim)
    assert expected_state(Net(), OPTIMS[optim]) == {name: value.shape for name, value in state.items()}


def _first_state_of(rank: int, world: int, optim: str) -> Arrays:
    return arrays(make(optim, zero=1).state())


@pytest.mark.parametrize(
    ("optim", "zero", "message"),
    [("lars", 1, "norm of each layer.*scale.zero=0"), ("sgd", 3, "stages 0, 1 and 2 are supported")],
)
def test_what_cannot_be_right_is_refused(optim: str, zero: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make(optim, zero)
