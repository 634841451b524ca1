"""From a recipe to a job: sizes, steps, batch regime and precision, checked before anything starts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from vergence.methods.method import Batch, DataFacts, Method, num_large
from vergence.pipelines.recipe import Recipe, build_method
from vergence.platform.cluster import session
from vergence.platform.cluster.capacity import Need, check_local
from vergence.platform.data.index import Index
from vergence.platform.data.plan import HOLDOUT_RULE, Plan
from vergence.platform.data.stream import Stream
from vergence.platform.errors import UserError
from vergence.platform.runs.run import Run
from vergence.platform.train import memory, norm_check, norms
from vergence.platform.train.engine import check_support, resolve_precision
from vergence.platform.train.exact import BatchConfig
from vergence.platform.train.job import Job
from vergence.platform.train.optim.config import effective_lr
from vergence.platform.train.optim.groups import parameter_groups

MEMORY_SHARE = 0.6  # of what is available, for activations


@dataclass(frozen=True)
class Resolved:
    """Everything about an attempt that is decided before it starts."""

    recipe: Recipe
    index: Index
    plan: Plan
    share: int
    choice: memory.Choice
    norm: norms.NormConfig  # defaults filled in; span: samples within which shuffling BN permutes
    precision: Literal["fp32", "bf16"]
    need: Need

    @property
    def steps(self) -> int:
        return self.recipe.epochs * self.plan.batches_per_epoch

    @property
    def lr(self) -> float:
        return effective_lr(self.recipe.optim, self.plan.global_batch)

    def facts(self) -> dict[str, Any]:
        """What commits, exports and MLflow say about where they come from."""
        return {
            "recipe": self.recipe.dump(),
            "recipe_digest": self.recipe.digest(),
            "data_digest": self.index.digest,
            "holdout_rule": HOLDOUT_RULE,
            "code_version": code_version(),
        }

    def job(self, run: Run, stages: Mapping[str, float]) -> Job:
        recipe = self.recipe
        return Job(
            run=run.path,
            attempt=run.attempt,
            build=partial(build_method, recipe, data_facts(recipe, self.index)),
            index=self.index.path,
            plan=self.plan,
            epochs=recipe.epochs,
            views=recipe.views,
            size=recipe.size,
            data=recipe.data,
            norm_group=self.norm.group or "global",
            norm_span=self.norm.span,
            micro=self.choice.micro,
            regime=self.choice.regime,
            precision=self.precision,
            device="cuda" if recipe.scale.gpus_per_worker else "cpu",
            threads=recipe.scale.cpus_per_worker,
            zero=recipe.scale.zero,
            optim=recipe.optim,
            schedule=recipe.schedule,
            monitor=recipe.monitor,
            commit=recipe.commit,
            metrics_every=recipe.track.every_steps,
            facts=self.facts(),
            stages=stages,
        )

    def stream(self) -> Stream:
        return Stream(
            index=self.index.path,
            plan=self.plan,
            epochs=self.recipe.epochs,
            max_pixels=self.recipe.data.max_pixels,
            decoded_bytes=decoded_bytes(self),
        )


def share_of(batch: BatchConfig, workers: int) -> int:
    """A rank's part of the global batch; UserError naming the nearest batches that divide."""
    share, rest = divmod(batch.global_batch, workers)
    if rest:
        nearest = [share * workers, (share + 1) * workers]
        raise UserError(
            f"batch.global {batch.global_batch} does not divide by {workers} workers; "
            f"nearest: {', '.join(str(size) for size in nearest if size)}"
        )
    return share


def decoded_bytes(resolved: "Resolved") -> int:
    """Decoded size of a sample, in bytes: the mean of a few."""
    from vergence.platform.data.read import Reader

    ids = resolved.plan.training_ids(np.arange(min(16, resolved.plan.num_training)))
    images = Reader(resolved.index, max_pixels=resolved.recipe.data.max_pixels).images(ids)
    sizes = [image.nbytes for image in images if isinstance(image, np.ndarray)]
    return sum(sizes) // len(sizes) if sizes else 1 << 20


def resolve(recipe: Recipe, index: Index, method: Method, kept: dict[str, Any]) -> Resolved:
    """Check the recipe against the data and the machine.

    method: the built method, on which memory is estimated; kept: facts of an earlier attempt of the run,
    whose precision, batch regime, micro-batch and shuffling span stay. Raises UserError.
    """
    need = Need(recipe.scale, recipe.data.readers, recipe.data.reader_cpus)
    if session.place() == "own":
        check_local(need)
    _check_lengths(recipe, method)
    plan = plan_of(recipe, index)
    share = share_of(recipe.batch, recipe.scale.workers)
    check_support(recipe.optim, recipe.scale.zero)
    device = torch.device("cuda" if recipe.scale.gpus_per_worker else "cpu")
    blind = device.type == "cuda" and not torch.cuda.is_available()
    if blind:
        _check_nothing_is_measured(recipe)
    precision = kept.get("precision") or resolve_precision(recipe.precision, device)
    norm = recipe.norm.for_method(method.needs.shuffle)
    span = norm.span or kept.get("span")
    unknown = norm_check.unknown(method)
    if unknown:
        raise UserError(
            f"encoder.name={recipe.encoder.name}: {unknown}, whose statistics would depend on micro-batch and "
            f"number of workers; use an encoder with {norm_check.KNOWN}"
        )
    with norm_check.recorded(method) as forwards:
        bytes_per_sample = _bytes_per_sample(recipe, method, precision)
    choice = memory.choose(
        _as_before(recipe.batch, kept, share),
        share=share,
        group=norm.group if isinstance(norm.group, int) else plan.global_batch,
        bytes_per_sample=bytes_per_sample,
        budget=0 if blind else int(MEMORY_SHARE * memory.available_bytes(device, recipe.scale.workers)),
        span=span or 1,
    )
    if method.needs.shuffle:
        norm = norm.model_copy(update={"span": span or choice.micro})
    norms.validate(norm, share=share, micro=choice.micro, global_batch=plan.global_batch)
    if isinstance(norm.group, int) and norm.group < choice.micro:
        _check_rows(recipe, norm.group, forwards)
    parameter_groups(method, recipe.optim, effective_lr(recipe.optim, plan.global_batch))
    return Resolved(recipe, index, plan, share, choice, norm, precision, need)


def _check_nothing_is_measured(recipe: Recipe) -> None:
    if recipe.precision == "auto" or recipe.batch.micro is None or recipe.batch.regime == "auto":
        raise UserError(
            "scale.gpus_per_worker=1, but this machine, which plans the run, has no GPU to measure on: give "
            "precision=bf16 or fp32, batch.micro, and batch.regime=one, kept or two-pass"
        )


def _as_before(config: BatchConfig, kept: Mapping[str, Any], share: int) -> BatchConfig:
    """With the regime and micro-batch of an earlier attempt, where the recipe leaves them open and they fit."""
    whole = config.micro in (None, share)  # a smaller micro-batch than before rules out one forward
    if config.regime == "auto" and "regime" in kept and (whole or kept["regime"] != "one"):
        config = config.model_copy(update={"regime": kept["regime"]})
    if config.micro is None and kept.get("regime", "one") != "one" and share % kept["micro"] == 0:
        config = config.model_copy(update={"micro": kept["micro"]})
    return config


def _check_lengths(recipe: Recipe, method: Method) -> None:
    """Of the warm-up, and of the list of views."""
    if recipe.schedule.warmup_epochs > recipe.epochs:
        raise UserError(
            f"schedule.warmup_epochs={recipe.schedule.warmup_epochs:g} is longer than the run of {recipe.epochs} "
            f"epochs; at most {recipe.epochs}"
        )
    sizes, rule = sizes_of(recipe), method.needs.views
    if rule is None and sizes:
        raise UserError(f"views: {recipe.method.name} takes no views, got {len(sizes)}; leave views out")
    if rule is not None and not rule.allows(sizes):
        got = ", ".join(f"{spec.count} x {spec.size} px" for spec in recipe.views) or "none"
        raise UserError(f"views: {recipe.method.name} takes {rule}, got {got}")


def sizes_of(recipe: Recipe) -> list[int]:
    """Side in pixels of each view."""
    return [spec.size for spec in recipe.views for _ in range(spec.count)]


def plan_of(recipe: Recipe, index: Index) -> Plan:
    return Plan(len(index), recipe.data.holdout, recipe.seed, recipe.batch.global_batch)


def data_facts(recipe: Recipe, index: Index) -> DataFacts:
    """What the method is built from; UserError: fewer training samples than one global batch."""
    return DataFacts(plan_of(recipe, index).num_training, len(index), recipe.epochs)


def _check_rows(recipe: Recipe, group: int, forwards: Sequence[norm_check.Rows]) -> None:
    """Raises UserError if several groups would share a forward and a norm layer cannot tell their rows apart."""
    small, large = forwards
    layer = norm_check.misplaced(small, large, memory.SIZES[0])
    if layer:
        raise UserError(
            f"encoder.name={recipe.encoder.name}: what {layer} normalises are not the samples in order (it folds or "
            f"permutes them), so that norm.group {group} would mix rows of other samples; use norm.group=global, "
            "where their order does not matter, or another encoder"
        )


def _bytes_per_sample(recipe: Recipe, method: Method, precision: str) -> int:
    """What a forward keeps for its backward, per sample, measured on a tiny batch.

    Raises UserError: the network cannot take such views.
    """
    sides = sizes_of(recipe)

    def example(n: int) -> Batch:
        views = [_distinct_images(n, side) for side in sides]
        return Batch(views=views, ids=torch.arange(n), num_large=num_large(sides))

    def autocast() -> Any:
        return torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")

    try:
        return memory.activation_bytes_per_sample(method, example, autocast)
    except (RuntimeError, ValueError, AssertionError) as error:  # whatever timm's models raise
        raise UserError(
            f"views: {recipe.method.name} on {recipe.encoder.name} cannot take views of "
            f"{', '.join(map(str, sides))} pixels: {(str(error).splitlines() or ['no reason given'])[0]}"
        ) from None


def _distinct_images(n: int, side: int) -> torch.Tensor:
    """Noise of another mean and spread for every sample, the same whatever n; (n, 3, side, side) channels_last."""
    generator = torch.Generator().manual_seed(0)
    noise = [torch.randn(3, side, side, generator=generator) * (1 + i) + i for i in range(n)]
    return torch.stack(noise).to(memory_format=torch.channels_last)


@cache
def code_version() -> str:
    """The package's version, with the commit when it runs from a checkout (-dirty: with changes besides)."""
    import subprocess

    root = Path(__file__).resolve().parent.parent
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--exclude=*"]
    if not (root / ".git").exists():
        return version("vergence")
    try:
        described = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return version("vergence")
    return f"{version('vergence')}+{described.stdout.strip()}"
