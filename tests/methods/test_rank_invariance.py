"""One rank and several ranks are the same training: losses, gradients (in scale too), teachers and queues."""

from typing import Any

import pytest
import torch
import torch.distributed as dist
from ranks import run_ranks
from small_methods import small_method, two_views, without_norms

from vergence.methods.catalog import METHODS

SAMPLES, STEPS = 12, 3
FORMS: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in METHODS},
    "mocov2-symmetric": ("mocov2", {"symmetric": True}),
    "barlow_twins-stop_gradient": ("barlow_twins", {"stop_gradient": True}),
    "barlow_twins-predictor": ("barlow_twins", {"predictor": True}),
    "barlow_twins-asymmetric": ("barlow_twins", {"predictor": True, "stop_gradient": True}),
}
CASES = {
    f"{form}-{small}-small": (name, settings, small)
    for form, (name, settings) in FORMS.items()
    for small in (0, 3)
    if (views := METHODS[name][1].needs.views) is not None and views.allows([4] * 2 + [2] * small)
}


def train(rank: int, world_size: int) -> dict[str, dict[str, Any]]:
    """Three steps of SGD on this rank's contiguous slice; gradients averaged over ranks."""
    return {case: train_one(rank, world_size, *CASES[case]) for case in CASES}


def train_one(rank: int, world_size: int, name: str, settings: dict[str, Any], small: int) -> dict[str, Any]:
    def mean_over_ranks(x: torch.Tensor) -> torch.Tensor:
        x = x.detach().clone()
        if world_size > 1:
            dist.all_reduce(x)
        return x / world_size

    method = without_norms(small_method(name, **settings))
    losses, gradients = [], {}
    for step in range(STEPS):
        batch = two_views(SAMPLES, seed=step, skew=5.0, small=small)._replace(progress=step / STEPS)
        share = slice(rank * SAMPLES // world_size, (rank + 1) * SAMPLES // world_size)
        fields = {key: field[share] for key, field in batch.fields.items()}
        batch = batch._replace(
            views=[view[share] for view in batch.views], ids=batch.ids[share], fields=fields
        )
        out, targets = method(batch), method.targets(batch)
        method.zero_grad()
        loss = method.criterion(out, targets, batch._replace(views=[])).loss
        loss.backward()
        losses.append(mean_over_ranks(loss).item())
        for key, p in method.named_parameters():
            if p.requires_grad:
                p.grad = mean_over_ranks(p.grad)
                gradients[f"{step}.{key}"] = p.grad.numpy().copy()
                p.data -= 0.5 * p.grad
        method.after_step(out, targets, batch)
    state = {key: value.numpy().copy() for key, value in method.state_dict().items()}
    return {"losses": losses, "gradients": gradients, "state": state}


@pytest.fixture(scope="module")
def single() -> dict[str, dict[str, Any]]:
    return train(0, 1)


@pytest.fixture(scope="module", params=[2, 3])
def several(request: pytest.FixtureRequest) -> list[dict[str, dict[str, Any]]]:
    return run_ranks(train, request.param)


@pytest.mark.parametrize("name", CASES)
def test_losses_and_gradients_are_those_of_one_rank(name: str, single: Any, several: Any) -> None:
    expected = {key: torch.from_numpy(g) for key, g in single[name]["gradients"].items()}
    for rank in several:
        assert rank[name]["losses"] == pytest.approx(single[name]["losses"], abs=1e-9)
        for step in range(STEPS):
            of_step = {key: g for key, g in expected.items() if key.startswith(f"{step}.")}
            everything = torch.stack([g.norm() for g in of_step.values()]).norm().item()
            assert everything > 1e-3  # there is something to compare
            for key, g in of_step.items():
                error = (torch.from_numpy(rank[name]["gradients"][key]) - g).norm().item()
                assert error <= 1e-9 * max(g.norm().item(), 1e-3 * everything), key


@pytest.mark.parametrize("name", CASES)
def test_state_is_the_same_on_every_rank_and_that_of_one_rank(name: str, single: Any, several: Any) -> None:
    first = several[0][name]["state"]
    for key, value in single[name]["state"].items():
        assert first[key] == pytest.approx(value, abs=1e-9), key
        frozen = key.startswith(
            (
                "queue.",
                "queues.",
                "other_queue.",
                "dense_queue.",
                "negatives",
                "velocity",
                "filled",
                "memory.",
                "bank",
                "teacher.",
                "center",
                "labels",
            )
        )
        for rank in several[1:]:
            if frozen:
                assert (rank[name]["state"][key] == first[key]).all(), key
