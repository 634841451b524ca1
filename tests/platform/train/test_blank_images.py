"""Norm groups of blank frames: their steps do not wreck a run, and their samples are named."""

import json
import logging
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ranks import alone
from shard_files import png, write_shard
from small_methods import FACTS

from vergence.methods.catalog import METHODS
from vergence.methods.method import Batch
from vergence.methods.parts.backbones import EncoderConfig, build_encoder
from vergence.pipelines.recipe import Recipe, build_method
from vergence.pipelines.resolve import data_facts, resolve
from vergence.platform.data.index import open_index
from vergence.platform.runs import commit as commits
from vergence.platform.runs.run import Run, locked
from vergence.platform.train.exact import accumulate
from vergence.platform.train.loop import RankLoop
from vergence.platform.train.norms import install

N, BLANK = 24, 8


def gradient_norms(name: str, blank: int, precision: torch.dtype, steps: int = 3) -> list[float]:
    """Of the first steps, with a batch whose first samples are black in both views."""
    torch.manual_seed(0)
    config, method_class = METHODS[name]
    encoder = build_encoder(EncoderConfig(name="resnet18", stem="cifar", width=0.125))
    method: Any = method_class.build(config(hidden_dim=32, embed_dim=16), encoder, FACTS).train()
    norms = install(method, 4, share=N)
    optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=0.01)
    half = precision == torch.bfloat16
    found = []
    for step in range(steps):
        generator = torch.Generator().manual_seed(step)
        coarse = torch.randn(2, N, 3, 4, 4, generator=generator)
        coarse[:, :blank] = -1.9
        views = [v.repeat_interleave(4, 2).repeat_interleave(4, 3).to(precision) for v in coarse]
        batch = Batch([v.contiguous(memory_format=torch.channels_last) for v in views], torch.arange(N))
        optimizer.zero_grad()
        result = accumulate(
            method,
            [batch],
            seeds=[step],
            regime="one",
            norms=norms,
            autocast=lambda: torch.autocast("cpu", torch.bfloat16) if half else nullcontext(),
            backward=lambda scalar, last: scalar.backward(),
            proceed=lambda loss: True,
        )
        assert result is not None
        gradients = [p.grad.flatten() for p in method.parameters() if p.grad is not None]
        found.append(torch.cat(gradients).norm().item())
        optimizer.step()
        norms.update()
    return found


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["simclr", "byol"])
def test_black_frames_do_not_explode_the_gradient(name: str, precision: torch.dtype) -> None:
    clean = gradient_norms(name, 0, precision)
    for norm in gradient_norms(name, BLANK, precision):
        assert norm < 3 * max(clean)


RECIPE = {
    "epochs": 2,
    "precision": "bf16",
    "method": {"name": "byol", "hidden_dim": 16, "embed_dim": 8},
    "encoder": {"name": "resnet18", "stem": "cifar", "width": 0.0625},
    "views": [{"count": 2, "size": 8, "recipe": "byol-cifar"}],
    "norm": {"group": 2},
    "batch": {"global": 16, "micro": 8},
    "optim": {"name": "sgd", "lr": 0.1, "per": 16},
    "commit": {"every_steps": 1, "keep": 9},
    "track": {"every_steps": 2},
}
NUM, BLACK = 40, 24


@pytest.fixture
def attempt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs the recipe over images of which most are black, from a commit; the loop."""
    monkeypatch.setenv("VERGENCE_HOME", str(tmp_path / "home"))
    pixels = np.random.default_rng(0).integers(0, 256, (NUM, 8, 8, 3), dtype=np.uint8)
    pixels[:BLACK] = 0
    shard = write_shard(
        tmp_path / "t-000000.tar", ((f"{i:02d}", {"png": png(p)}) for i, p in enumerate(pixels))
    )
    recipe = Recipe.parse({**RECIPE, "data": {"train": str(shard), "holdout": 0.0}}, "recipe")
    index = open_index(str(shard), tmp_path / "index")
    resolved = resolve(recipe, index, build_method(recipe, data_facts(recipe, index)))
    run = Run("r", attempt="test")
    run.logs.mkdir(parents=True)
    job = resolved.job(run, {})

    def go(commit: Any = None) -> RankLoop:
        loop = RankLoop(job, commit)

        def rows() -> Iterator[Any]:
            for step in range(loop.step, resolved.steps):
                yield resolved.stream.share(step, 0, 1)

        with locked(run):
            assert loop.run(rows()).status == "finished"
        return loop

    return go


@alone
def test_a_run_over_black_frames_says_which_and_goes_on_alike_after_a_commit(
    attempt: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        loop = attempt()
    named = [record.getMessage() for record in caplog.records if "no gradient" in record.getMessage()]
    assert named
    for message in named:
        step, samples = message.split(": no gradient from a norm group of one image: ")
        plan = loop.job.plan.batch_ids(int(step.removeprefix("step ")))
        pairs = plan.reshape(-1, 2)
        expected = [loop.reader.index.where(i) for i in pairs[(pairs < BLACK).all(1)].ravel()]
        assert samples == ", ".join(expected)
    records = [
        json.loads(line) for line in (loop.job.run / "logs" / "metrics.jsonl").read_text().splitlines()
    ]
    total = sum(int(record["warning"].split()[0]) for record in records if "warning" in record)
    assert total == sum(message.count(", ") + 1 for message in named)

    undisturbed = loop.engine.state()
    for path in sorted((loop.job.run / "commits").iterdir())[2:]:
        path.rename(path.with_name(f".{path.name}"))
    again = attempt(commits.newest(loop.job.run / "commits"))
    assert all(torch.equal(value, undisturbed[name]) for name, value in again.engine.state().items())
