import re
import sys
from typing import Any, ClassVar, Literal, get_args

import pytest
import torch
from pydantic import BaseModel, ValidationError
from small_methods import small_method, two_views, whole

from vergence.methods.catalog import METHODS, check
from vergence.methods.method import Family, Method

NAMES = list(METHODS)
# whose heads norm over the batch, so that views that share a forward show
NORMED = [
    name for name in NAMES if any(isinstance(m, torch.nn.BatchNorm1d) for m in small_method(name).modules())
]


@pytest.mark.parametrize("name", NAMES)
def test_every_method_says_what_it_is(name: str) -> None:
    about, text = METHODS[name][1].about, sys.modules[METHODS[name][1].__module__].__doc__ or ""
    assert about.family in get_args(Family)
    assert 2018 <= about.year <= 2026
    assert re.search(r"arXiv:\d{4}\.\d{5}", text)
    assert "\nTune first: " in text


def test_what_a_method_lacks_is_named_before_it_is_used() -> None:
    whole_config, whole_method = METHODS["simclr"]
    check("simclr", whole_config, whole_method)

    class Nameless(BaseModel):
        zero_init_residual: ClassVar[str] = "none"

    class Residual(BaseModel):
        name: Literal["mine"] = "mine"

    class Untold(Method[Any, Any, Any]):
        def forward(self, batch: Any) -> Any: ...

        def criterion(self, out: Any, targets: Any, batch: Any) -> Any: ...

    class Half(Method[Any, Any, Any]):
        about = whole_method.about

        def forward(self, batch: Any) -> Any: ...

    wrong: tuple[tuple[str, type[BaseModel], type[Method], str], ...] = (
        ("simclr", whole_config, Untold, r"class Untold .* lacks `about: ClassVar\[About\] = About\(YEAR"),
        (
            "mine",
            Residual,
            whole_method,
            r"class Residual .* lacks `zero_init_residual: ClassVar\[ZeroInit\]",
        ),
        ("mine", Nameless, whole_method, r'class Nameless .* lacks `name: Literal\["mine"\] = "mine"`'),
        ("twin", whole_config, whole_method, r'class SimCLRConfig .* lacks `name: Literal\["twin"\]'),
        ("simclr", whole_config, Half, r"simclr: class Half does not define criterion"),
    )
    for name, config, method, message in wrong:
        with pytest.raises(TypeError, match=message):
            check(name, config, method)


@pytest.mark.parametrize("name", NAMES)
def test_config_is_strict_frozen_and_described(name: str) -> None:
    config: Any = METHODS[name][0]
    assert config().name == name
    assert all(field.description for key, field in config.model_fields.items() if key != "name")
    with pytest.raises(ValidationError, match="temprature"):
        config(temprature=0.1)
    with pytest.raises(ValidationError):
        config(view_forward=128)
    with pytest.raises(ValidationError):
        config().embed_dim = 3


@pytest.mark.parametrize("name", NAMES)
def test_every_trainable_parameter_acts_inside_forward_only(name: str) -> None:
    """Contract C9 (a): criterion on detached embeddings reaches no parameter, forward reaches all."""
    method, batch = small_method(name), two_views(6)
    out, targets = method(batch), method.targets(batch)
    cut = type(out)(*(x.detach().requires_grad_() for x in out))
    method.criterion(cut, targets, whole(6)).loss.backward()
    assert all(p.grad is None for p in method.parameters())
    reached = [(x, x_cut.grad) for x, x_cut in zip(out, cut, strict=True) if x_cut.grad is not None]
    torch.autograd.backward([x for x, _ in reached], [grad for _, grad in reached])
    assert [key for key, p in method.named_parameters() if p.requires_grad and p.grad is None] == []


@pytest.mark.parametrize("name", NAMES)
def test_outputs_have_samples_first_and_losses_are_scalars(name: str) -> None:
    method, batch = small_method(name), two_views(6)
    out, targets = method(batch), method.targets(batch)
    assert all(len(x) == 6 for x in (*out, *targets))
    losses = method.criterion(out, targets, whole(6))
    assert losses._fields[0] == "loss"
    assert all(x.ndim == 0 and x.isfinite() for x in losses)
    assert [x.requires_grad for x in losses] == [True] + [False] * (len(losses) - 1)


@pytest.mark.parametrize("name", NAMES)
def test_bf16_networks_get_an_fp32_loss(name: str) -> None:
    method, batch = small_method(name).float(), two_views(6)
    batch = batch._replace(views=[view.float() for view in batch.views])
    with torch.autocast("cpu", torch.bfloat16):
        out, targets = method(batch), method.targets(batch)
    assert out[0].dtype == torch.bfloat16
    assert all(x.dtype == torch.float32 for x in method.criterion(out, targets, whole(6)))


@pytest.mark.parametrize("name", NAMES)
def test_half_precision_embeddings_with_outliers_give_a_finite_fp32_loss(name: str) -> None:
    method, batch = small_method(name).float(), two_views(8)
    batch = batch._replace(views=[view.float() for view in batch.views])
    out, targets = method(batch), method.targets(batch)
    halves = [x.detach().half() for x in out]
    halves[0].flatten()[0] = 1e4
    loss = method.criterion(type(out)(*halves), targets, whole(8)).loss
    assert loss.dtype == torch.float32
    assert loss.isfinite()


@pytest.mark.parametrize("name", NAMES)
def test_state_has_every_tensor_that_training_changes(name: str) -> None:
    """Going on from the state equals going on undisturbed: nothing lives outside the state dict."""

    def step(method: torch.nn.Module, seed: int) -> torch.Tensor:
        batch = two_views(6, seed)._replace(progress=seed / 6)
        out, targets = method(batch), method.targets(batch)
        loss = method.criterion(out, targets, whole(6)).loss
        trained = [p for p in method.parameters() if p.requires_grad]
        for p, g in zip(trained, torch.autograd.grad(loss, trained), strict=True):
            p.data -= 0.5 * g
        method.after_step(out, targets, batch)
        return loss.detach()

    undisturbed = small_method(name)
    losses = [step(undisturbed, seed) for seed in range(6)]
    first, second = small_method(name), small_method(name, seed=1)
    for seed in range(3):
        step(first, seed)
    second.load_state_dict(first.state_dict())
    assert [step(second, seed) for seed in range(3, 6)] == losses[3:]


@pytest.mark.parametrize(
    ("name", "default"),
    [
        ("simclr", "joint"),
        ("simclrv2", "joint"),
        ("byol", "per_view"),
        ("contrastive_clustering", "per_view"),
        ("swav", "joint"),
        ("deep_cluster_v2", "joint"),
        ("dino", "joint"),
        ("mocov3", "per_view"),
        ("simsiam", "per_view"),
        ("barlow_twins", "per_view"),
        ("vicreg", "per_view"),
    ],
)
def test_views_share_a_forward_as_published(name: str, default: str) -> None:
    config: Any = METHODS[name][0]()
    assert config.view_forward == default


@pytest.mark.parametrize("name", NORMED)
@pytest.mark.parametrize("how", ["joint", "per_view"])
def test_only_a_joint_forward_mixes_the_statistics_of_both_views(name: str, how: str) -> None:
    method, batch = small_method(name, view_forward=how), two_views(6)
    moved = batch._replace(views=[batch.views[0], batch.views[1] + 1])
    before, after = (method(each)[0][:, 0] for each in (batch, moved))
    assert torch.equal(before, after) == (how == "per_view")
