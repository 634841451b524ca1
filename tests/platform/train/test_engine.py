"""The engine at ZeRO stages 0, 1, 2 against plain torch in one process, and its state by name."""

import copy

import numpy as np
import pytest
import torch
from ranks import import_deepspeed, run_ranks
from small_engine import (
    OPTIMS,
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

from vergence.methods.parts.backbones import EncoderConfig, build_encoder
from vergence.platform.errors import UserError
from vergence.platform.train.engine import expected_state, first_weights


@pytest.fixture(scope="module", autouse=True)
def _deepspeed_imported_once() -> None:
    import_deepspeed()


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
        net.get_buffer("queue").add_(rank)
        net.head.weight += rank
    engine = engine_of(net, OPTIMS["sgd"], 0)
    return arrays(engine.state())


def test_parameters_and_buffers_start_as_on_rank_0() -> None:
    first, second = run_ranks(_first_state, 2)
    assert_same(first, second, "start")
    np.testing.assert_array_equal(second["model.queue"], np.arange(4.0))


def _before_and_after(rank: int, world: int) -> None:
    engine = make("sgd", 0)
    assert engine.module.encoder[0].weight.is_contiguous(memory_format=torch.channels_last)
    state = engine.state()
    before = copy.deepcopy(arrays(state))
    train(engine, range(1), rank, world)
    assert_same(arrays(state), before, "state of before")


def test_weights_are_channels_last_and_the_state_is_a_copy() -> None:
    run_ranks(_before_and_after, 1)


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


@pytest.mark.parametrize(
    ("frozen", "first"),
    [(False, "backbone.patch_embed.proj.weight"), (True, "backbone.blocks.0.attn.qkv.weight")],
)
def test_first_weights_of_a_vit_are_of_a_layer_that_trains(frozen: bool, first: str) -> None:
    config = EncoderConfig(
        name="vit_tiny_patch16_224", patch_size=4, depth=1, pool="cls", freeze_patches=frozen
    )
    vit = build_encoder(config, image_size=8)
    assert first_weights(vit) is dict(vit.named_parameters())[first]
    assert next(iter(vit.parameters())) is vit.backbone.cls_token  # what comes before every layer
