"""Gradients and running statistics: equal for any number of ranks and micro-batches, in float64.

The tolerance per tensor is 1e-9 * max(|g|, 1e-3 * |all gradients|). Nothing is rescaled before comparing.
"""

import copy
from contextlib import nullcontext
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from ranks import run_ranks
from small_methods import FACTS, patch_encoder, small_vit, sweep_of, texts
from torch import Tensor, nn

from vergence.methods import collectives
from vergence.methods.catalog import METHODS
from vergence.methods.method import Batch, Method
from vergence.methods.parts.backbones import EncoderConfig, build_encoder
from vergence.methods.parts.patches import PatchAugmentation
from vergence.platform.train.exact import Regime, accumulate
from vergence.platform.train.norms import install

G = 24  # global batch: shares of 24, 12, 8
GROUP, SPAN = 2, 4  # samples that share statistics; samples that shuffling BN permutes
MICRO = 8
WIDTHS = {  # of the methods that have them
    "hidden_dim": 16,
    "embed_dim": 8,
    "bottleneck_dim": 8,
    "queue_size": 32,
    "prototypes": 12,
    "outputs": 12,
    "clusters": 6,
    "memory_size": 32,
    "text_width": 16,
    "text_layers": 2,
    "text_heads": 2,
    "num_negatives": 32,
}
BLANK = range(4, 6)  # a norm group of blank frames, in the batches of toy-blank


class Out(NamedTuple):
    z: Tensor
    unused: Tensor


class Keys(NamedTuple):
    k: Tensor


class Losses(NamedTuple):
    loss: Tensor
    target_norm: Tensor


class Toy(Method[None, Out, Keys]):
    """NT-Xent against a teacher's keys, plus a term in global statistics; two views joint."""

    def __init__(self, dropout: float = 0.0) -> None:
        torch.manual_seed(0)
        encoder: Any = nn.Sequential(
            nn.Conv2d(3, 6, 3, bias=False),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
        )
        super().__init__(None, encoder, FACTS)
        self.head = nn.Sequential(
            nn.Linear(24, 10, bias=False),
            nn.BatchNorm1d(10),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(10, 5),
        )
        self.teacher = copy.deepcopy(nn.Sequential(self.encoder, self.head)).requires_grad_(False)

    def forward(self, batch: Batch) -> Out:
        z = self.head(self.encoder(torch.cat(list(batch.views))))
        return Out(z.unflatten(0, (2, -1)).transpose(0, 1), z[: len(batch.ids)].detach())

    def targets(self, batch: Batch) -> Keys:
        return Keys(F.normalize(self.teacher(batch.views[1]), dim=1))

    def criterion(self, out: Out, targets: Keys, batch: Batch) -> Losses:
        assert not batch.views
        assert len(batch.ids) == len(out.z) == len(targets.k)
        z = F.normalize(out.z, dim=-1)
        keys = collectives.gather(torch.cat([z[:, 1], targets.k], dim=1))
        logits = torch.cat([z[:, 0], z[:, 0]], dim=1) @ keys.T / 0.2
        labels = torch.arange(len(z)) + len(z) * collectives.rank()
        spread = collectives.mean(out.z.square().mean(dim=(0, 1))).log().mean()
        weight = batch.fields["weight"]
        loss = (F.cross_entropy(logits, labels, reduction="none") * weight).mean() + spread
        return Losses(loss, targets.k.norm())


def global_batch() -> dict[str, Tensor]:
    """Skewed over the positions, so that ranks and micro-batches differ in mean and scale."""
    generator = torch.Generator().manual_seed(3)
    base = torch.randn(G, 3, 8, 8, generator=generator, dtype=torch.float64)
    position = torch.linspace(0, 2, G, dtype=torch.float64).view(-1, 1, 1, 1)
    noise = torch.randn(2, G, 3, 8, 8, generator=generator, dtype=torch.float64)
    views = base * (1 + position) + position + 0.5 * noise
    shuffle = torch.cat([torch.randperm(SPAN, generator=generator) for _ in range(G // SPAN)])
    return {"views": views, "weight": 1 + position.flatten(), "shuffle": shuffle, **texts(G)}


def micro_batches(
    rank: int, world_size: int, micro: int, shuffles: bool, blank: bool = False, crops: bool = False
) -> list[Batch]:
    whole, share = global_batch(), G // world_size
    if blank:
        whole["views"][:, BLANK] = 1.0
    small = [view[..., :6, 1:7] for view in whole["views"].flip(3)] if crops else []
    batches = []
    for start in range(rank * share, (rank + 1) * share, micro):
        rows = slice(start, start + micro)
        views = [
            view[rows].contiguous(memory_format=torch.channels_last) for view in [*whole["views"], *small]
        ]
        # permutations inside a span are the same wherever the micro-batch is cut
        offsets = torch.arange(micro) // SPAN * SPAN
        batches.append(
            Batch(
                views=views,
                ids=torch.arange(start, start + micro),
                fields={key: whole[key][rows] for key in ("weight", "text", "text.length")},
                shuffle=whole["shuffle"][rows] + offsets if shuffles else None,
            )
        )
    return batches


def build(name: str) -> Any:
    torch.manual_seed(0)
    if name.startswith("toy"):
        return Toy(dropout=0.3 if name == "toy-dropout" else 0.0).double().train()
    name = name.removesuffix("-crops")
    config_class, cls = METHODS[name]
    small: dict[str, Any] = {k: width for k, width in WIDTHS.items() if k in config_class.model_fields}
    if name == "dino":
        small["projector_norm"] = "batch"
    encoder = build_encoder(
        EncoderConfig(name="resnet18", stem="cifar", width=0.125, split="rgb" if name == "cmc" else None)
    )
    if name in ("cpc", "cpc_v2"):
        small |= {"steps": 2, "context_dim": 8, "patches": PatchAugmentation(shift=1, flip=0.5)}
        small |= {"skipped": 0} if name == "cpc_v2" else {}
        encoder = patch_encoder()
    if name == "shared_transformer":
        encoder = small_vit()
    method = cls.build(config_class(**small), encoder, FACTS).double().train()
    method.before_epoch(0, sweep_of(method))
    return method


def step(rank: int, world_size: int, name: str, group: Any, micro: int, regime: Any) -> dict[str, np.ndarray]:
    """Averaged gradients, running statistics, loss and share-level outputs of one step."""
    method = build(name)
    norms = install(method, group, share=G // world_size)
    share = G // world_size
    calls: list[bool] = []

    def backward(scalar: Tensor, last: bool) -> None:
        calls.append(last)
        scalar.backward()

    micros = micro_batches(
        rank,
        world_size,
        micro,
        shuffles=method.needs.shuffle,
        blank=name == "toy-blank",
        crops="-crops" in name,
    )
    if name == "cmc":  # pixels in [0, 1]
        micros = [batch._replace(views=[view.sigmoid() for view in batch.views]) for batch in micros]
    result = accumulate(
        method,
        micros,
        seeds=range(rank * share, (rank + 1) * share, micro),
        regime=regime,
        norms=norms,
        autocast=nullcontext,
        backward=backward,
        proceed=lambda loss: bool(loss.isfinite()),
    )
    assert result is not None
    assert calls == [False] * (len(calls) - 1) + [True]
    alike = [rank * share + place for place in norms.alike_samples()]
    own = range(rank * share, (rank + 1) * share) if name == "toy-blank" and group == GROUP else ()
    assert alike == [place for place in BLANK if place in own]
    norms.update()
    grads = {f"grad.{n}": p.grad for n, p in method.named_parameters() if p.requires_grad}
    loss = result.losses.loss.clone()
    for value in [*grads.values(), loss]:
        if world_size > 1:
            dist.all_reduce(value)
        value /= world_size
    running = {n: b for n, b in method.named_buffers() if "running" in n or "tracked" in n}
    return {n: v.numpy().copy() for n, v in {**grads, **running, "loss": loss, "out": result.out[0]}.items()}


def cases(rank: int, world_size: int, todo: list[tuple]) -> list[dict[str, np.ndarray]]:
    return [step(rank, world_size, *case) for case in todo]


def assert_equal(got: dict[str, np.ndarray], expected: dict[str, np.ndarray], what: str) -> None:
    everything = np.sqrt(sum((v**2).sum() for n, v in expected.items() if n.startswith("grad.")))
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        if name == "out":
            continue
        scale = np.linalg.norm(value)
        if name.startswith("grad."):
            scale = max(scale, 1e-3 * everything)
        error = np.linalg.norm(got[name] - value)
        assert error <= 1e-9 * max(scale, 1e-3), f"{what}: {name} is off by {error / scale:.1e}"


# each method with its own norm settings, and with groups that let the batch be cut
SETTINGS: dict[str, list[Any]] = {
    "toy": [GROUP, "global"],
    "toy-blank": [GROUP, "global"],
    "inst_disc": [GROUP],
    "cmc": [GROUP],
    "inva_spread": [GROUP, "global"],
    "mocov1": [GROUP],
    "simclr": [GROUP, "global"],
    "simclrv2": [GROUP],
    "mocov2": [GROUP],
    "dense_cl": [GROUP],
    "infomin": [GROUP],
    "adco": [GROUP],
    "contrastive_clustering": [GROUP, "global"],
    "byol": [GROUP, "global"],
    "simsiam": [GROUP, "global"],
    "barlow_twins": [GROUP, "global"],
    "swav": [GROUP, "global"],
    "dino": [GROUP, "global"],
    "deep_cluster": [GROUP],
    "deep_cluster_v2": [GROUP],
    "cpc": [GROUP],
    "cpc_v2": [GROUP],
    "mocov3": [GROUP, "global"],
    "vicreg": [GROUP, "global"],
    "clip": [GROUP],
    "shared_transformer": [GROUP],
    "simclr-crops": [GROUP, "global"],
    "mocov2-crops": [GROUP],
    "dense_cl-crops": [GROUP],
    "infomin-crops": [GROUP],
    "adco-crops": [GROUP],
    "byol-crops": [GROUP, "global"],
    "simsiam-crops": [GROUP],
    "barlow_twins-crops": [GROUP, "global"],
    "swav-crops": [GROUP],
    "dino-crops": [GROUP],
    "deep_cluster_v2-crops": [GROUP],
    "mocov3-crops": [GROUP],
    "vicreg-crops": [GROUP],
    "clip-crops": [GROUP],
}


@pytest.fixture(scope="module")
def references() -> dict[tuple, dict[str, np.ndarray]]:
    """One process, one forward."""
    return {(n, g): step(0, 1, n, g, G, "one") for n, groups in SETTINGS.items() for g in groups}


@pytest.mark.parametrize("world_size", [2, 3])
def test_gradients_do_not_depend_on_the_number_of_ranks(references: Any, world_size: int) -> None:
    share = G // world_size
    todo = [(name, group, share, "one") for name, group in references]
    todo += [(name, GROUP, 4, regime) for name in ("toy", "toy-blank") for regime in ("kept", "two-pass")]
    for rank, results in enumerate(run_ranks(cases, world_size, todo)):
        for case, got in zip(todo, results):
            expected = references[case[:2]]
            assert_equal(got, expected, f"{case} on rank {rank} of {world_size}")
            rows = slice(rank * share, (rank + 1) * share)
            np.testing.assert_allclose(got["out"], expected["out"][rows], rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("name", list(SETTINGS))
@pytest.mark.parametrize("regime", ["kept", "two-pass"])
def test_gradients_do_not_depend_on_micro_batches(references: Any, name: str, regime: str) -> None:
    expected = references[name, GROUP]
    for micro in (MICRO, G // 2) if name == "toy" else (MICRO,):
        assert_equal(step(0, 1, name, GROUP, micro, regime), expected, f"{name} {regime} {micro}")


def test_the_settings_are_told_apart(references: Any) -> None:
    """The comparison can fail: other norm groups are another objective."""
    with pytest.raises(AssertionError, match="is off by"):
        assert_equal(references["toy", GROUP], references["toy", "global"], "toy")


def test_one_pass_equals_plain_torch_without_any_of_this(references: Any) -> None:
    method = build("toy")
    (batch,) = micro_batches(0, 1, G, shuffles=False)
    out, targets = method(batch), method.targets(batch)
    method.criterion(out, targets, batch._replace(views=())).loss.backward()
    plain = {f"grad.{n}": p.grad for n, p in method.named_parameters() if p.requires_grad}
    plain |= dict(method.named_buffers())
    reference = references["toy", "global"]
    kept = {n: v for n, v in reference.items() if n in plain}
    assert_equal({n: v.numpy() for n, v in plain.items()}, kept, "plain")


def test_dropout_is_the_same_in_both_passes_and_on_any_rank() -> None:
    micro = 4
    kept = step(0, 1, "toy-dropout", GROUP, micro, "kept")
    assert_equal(step(0, 1, "toy-dropout", GROUP, micro, "two-pass"), kept, "dropout")
    for (got,) in run_ranks(cases, 2, [("toy-dropout", GROUP, micro, "two-pass")]):
        assert_equal(got, kept, "dropout on 2 ranks")
    without = step(0, 1, "toy", GROUP, micro, "two-pass")
    assert not np.allclose(kept["grad.head.0.weight"], without["grad.head.0.weight"])


class Watched(Toy):
    """Notes for each call whether it runs under autocast, and with graph."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, bool, bool]] = []

    def note(self, part: str) -> None:
        self.calls.append((part, torch.is_autocast_enabled("cpu"), torch.is_grad_enabled()))

    def forward(self, batch: Batch) -> Out:
        self.note("forward")
        return super().forward(batch)

    def targets(self, batch: Batch) -> Keys:
        self.note("targets")
        return super().targets(batch)

    def criterion(self, out: Out, targets: Keys, batch: Batch) -> Losses:
        self.note("criterion")
        self.seen = batch
        return super().criterion(out, targets, batch)


@pytest.mark.parametrize("regime", ["kept", "two-pass"])
def test_what_each_part_of_a_method_sees(regime: Any) -> None:
    method = Watched()
    micros = [
        b._replace(views=[v.float() for v in b.views], fields={"weight": b.fields["weight"].float()})
        for b in micro_batches(0, 1, MICRO, shuffles=False)
    ]
    accumulate(
        method,
        micros,
        seeds=range(0, G, MICRO),
        regime=regime,
        norms=install(method, GROUP, share=G),
        autocast=lambda: torch.autocast("cpu", torch.bfloat16),
        backward=lambda scalar, last: scalar.backward(),
        proceed=lambda loss: True,
    )
    first = [("forward", True, regime == "kept"), ("targets", True, False)] * 3
    again = [("forward", True, True)] * 3 if regime == "two-pass" else []
    assert method.calls == [*first, ("criterion", False, True), *again]
    assert method.seen.ids.tolist() == list(range(G))
    assert torch.equal(method.seen.fields["weight"], global_batch()["weight"].float())


@pytest.mark.parametrize("regime", ["kept", "two-pass"])
def test_refused_step_leaves_no_trace(regime: Any) -> None:
    method = build("toy")
    norms = install(method, GROUP, share=G)
    before = copy.deepcopy(method.state_dict())
    result = accumulate(
        method,
        micro_batches(0, 1, MICRO, shuffles=False),
        seeds=range(0, G, MICRO),
        regime=regime,
        norms=norms,
        autocast=nullcontext,
        backward=lambda scalar, last: pytest.fail("backward ran"),
        proceed=lambda loss: False,
    )
    norms.update()
    assert result is None
    assert all(torch.equal(method.state_dict()[name], value) for name, value in before.items())
    assert all(p.grad is None for p in method.parameters())


def test_bf16_weights_cached_without_graph_do_not_serve_the_pass_with_graph() -> None:
    grads = {}
    regimes: list[Regime] = ["kept", "two-pass"]
    for regime in regimes:
        method = build("toy").float()
        norms = install(method, GROUP, share=G)
        batches = [
            b._replace(views=[v.float() for v in b.views], fields={"weight": b.fields["weight"].float()})
            for b in micro_batches(0, 1, MICRO, shuffles=False)
        ]
        accumulate(
            method,
            batches,
            seeds=range(0, G, MICRO),
            regime=regime,
            norms=norms,
            autocast=lambda: torch.autocast("cpu", torch.bfloat16),
            backward=lambda scalar, last: scalar.backward(),
            proceed=lambda loss: True,
        )
        grads[regime] = torch.cat([p.grad.flatten() for p in method.parameters() if p.requires_grad])
    assert F.cosine_similarity(grads["kept"], grads["two-pass"], dim=0) > 0.999
