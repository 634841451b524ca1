"""From a recipe to a job: sizes, steps and layout, checked before anything starts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch

from vergence.methods.method import Batch, DataFacts, Method, num_large
from vergence.pipelines.recipe import Recipe, build_method, flatten
from vergence.pipelines.scale import plan_for
from vergence.platform.cluster.capacity import Need
from vergence.platform.data.captions import Captions, captions_of
from vergence.platform.data.config import BYTES
from vergence.platform.data.formats import MEMBER_EXTENSIONS
from vergence.platform.data.index import Index
from vergence.platform.data.modality import FIELDS, LABEL, TEXT
from vergence.platform.data.plan import HOLDOUT_RULE, Plan
from vergence.platform.data.read import Reader
from vergence.platform.data.stream import Stream
from vergence.platform.data.vocabulary import IN_MANIFEST, Vocabulary, of_captions, of_samples
from vergence.platform.encoders.pretrained import Initial
from vergence.platform.errors import UserError
from vergence.platform.runs.commit import Commit
from vergence.platform.runs.facts import RunFacts
from vergence.platform.runs.run import Run
from vergence.platform.train import memory, norm_check
from vergence.platform.train.engine import Precision, check_support
from vergence.platform.train.job import Job
from vergence.platform.train.layout import Layout, LayoutSpec, layout, precision_of
from vergence.platform.train.machine import Machine, measure
from vergence.platform.train.optim.config import effective_lr
from vergence.platform.train.optim.groups import parameter_groups
from vergence.platform.version import code_version


@dataclass(frozen=True)
class Resolved:
    """Everything about an attempt that is decided before it starts."""

    recipe: Recipe
    index: Index
    plan: Plan
    spec: LayoutSpec
    machine: Machine
    start_step: int
    stream: Stream
    initial: Initial | None = None  # of the encoder, if this attempt begins with pretrained weights

    @property
    def need(self) -> Need:
        return need_of(self.recipe)

    @cached_property
    def layout(self) -> Layout:
        """As each rank will find it."""
        return layout(self.spec, self.need.scale.workers, self.machine)

    @property
    def steps(self) -> int:
        return self.recipe.epochs * self.plan.batches_per_epoch

    @property
    def lr(self) -> float:
        return effective_lr(self.recipe.optim, self.plan.global_batch)

    def job(self, run: Run, stages: Mapping[str, float], pause_after: int | None = None) -> Job:
        recipe, scale = self.recipe, self.need.scale
        initial = run.initial_file if self.initial else None
        return Job(
            run=run.path,
            attempt=run.attempt,
            build=partial(build_method, recipe, data_facts(recipe, self.index), initial),
            index=self.index.path,
            plan=self.plan,
            epochs=recipe.epochs,
            views=recipe.views,
            size=recipe.size,
            data=recipe.data,
            vocabulary=self.stream.vocabulary,
            layout=self.spec,
            machine=self.machine,
            device="cuda" if scale.gpus_per_worker else "cpu",
            threads=scale.cpus_per_worker,
            zero=scale.zero,
            optim=recipe.optim,
            schedule=recipe.schedule,
            monitor=recipe.monitor,
            commit=recipe.commit,
            metrics_every=recipe.track.every_steps,
            facts=self._facts(),
            stages=stages,
            pause_after=pause_after,
        )

    def _facts(self) -> dict[str, Any]:
        """Of every commit."""
        words = self.stream.vocabulary
        return provenance(self.recipe, self.index) | ({IN_MANIFEST: words.json} if words else {})


def need_of(recipe: Recipe) -> Need:
    return Need(recipe.scale.settled(), recipe.data.readers, recipe.data.reader_cpus)


def provenance(recipe: Recipe, index: Index) -> dict[str, Any]:
    """What commits, exports and MLflow say about where they come from."""
    return {
        "recipe": recipe.dump(),
        "recipe_digest": recipe.digest(),
        "data_digest": index.digest,
        "holdout_rule": HOLDOUT_RULE,
        "code_version": code_version(),
    }


def resolve(
    recipe: Recipe,
    index: Index,
    method: Method,
    machine: Machine | None = None,
    kept: RunFacts | None = None,
    start: Commit | None = None,
) -> Resolved:
    """Check the recipe against the data and the machine that trains.

    method: the built method, on which memory is estimated; machine: by default this one; kept: facts of earlier
    attempts of the run, whose precision, batch regime, micro-batch and shuffling span stay; start: the commit that it goes
    on from, whose vocabulary stays. Raises UserError.
    """
    scale, kept = recipe.scale.settled(), kept or RunFacts()
    _check_lengths(recipe, method)
    plan = plan_of(recipe, index)
    check_support(recipe.optim, scale.zero)
    machine = machine or measure(scale.workers, gpus=bool(scale.gpus_per_worker))
    precision = precision_of(recipe.precision, kept, machine)
    unknown = norm_check.unknown(method)
    if unknown:
        raise UserError(
            f"encoder.name={recipe.encoder.name}: {unknown}, whose statistics would depend on micro-batch and "
            f"number of workers; use an encoder with {norm_check.KNOWN}"
        )
    stream = _stream(recipe, index, plan, method, start)
    with norm_check.recorded(method) as forwards:
        bytes_per_sample = _bytes_per_sample(recipe, method, precision, stream)
    spec = LayoutSpec(
        batch=recipe.batch,
        norm=recipe.norm,
        shuffles=method.needs.shuffle,
        precision=recipe.precision,
        on_gpu=bool(scale.gpus_per_worker),
        bytes_per_sample={precision: bytes_per_sample},
        kept=kept,
    )
    resolved = Resolved(recipe, index, plan, spec, machine, start.step if start else 0, stream)
    group = resolved.layout.norm_group
    if isinstance(group, int) and group < resolved.layout.micro:
        _check_rows(recipe, group, forwards)
    parameter_groups(method, recipe.optim, resolved.lr, recipe.schedule)
    return resolved


def _check_lengths(recipe: Recipe, method: Method) -> None:
    """Of all warm-ups, and of the list of views; that there is something to register."""
    for path, value in flatten(recipe.dump()).items():
        if path.endswith("warmup_epochs") and value > recipe.epochs:
            raise UserError(
                f"{path}={value:g} is longer than the run of {recipe.epochs} epochs; at most {recipe.epochs}"
            )
    name = recipe.track.register_as
    if name is not None and not recipe.size:
        raise UserError(
            f"track.register={name}: only encoders of images are registered; leave it out (null), or say at which "
            "encoder.image_size it is exported"
        )
    sizes, rule = sizes_of(recipe), method.needs.views
    if rule is None and sizes:
        raise UserError(f"views: {recipe.method.name} takes no views, got {len(sizes)}; leave views out")
    if rule is not None and not rule.allows(sizes):
        got = ", ".join(f"{spec.count} x {spec.size} px" for spec in recipe.views) or "none"
        raise UserError(f"views: {recipe.method.name} takes {rule}, got {got}")
    looks = [look for spec in recipe.views for look in spec.augmentations()]
    if method.needs.places and any(look.rotate or look.rand_augment for look in looks):
        raise UserError(
            f"views: {recipe.method.name} finds the pixels of a view in the picture again, as it cannot where views are "
            "turned or sheared; set rotate and rand_augment to 0"
        )


def sizes_of(recipe: Recipe) -> list[int]:
    """Side in pixels of each view."""
    return [spec.size for spec in recipe.views for _ in range(spec.count)]


def plan_of(recipe: Recipe, index: Index) -> Plan:
    return plan_for(recipe, len(index))


def data_facts(recipe: Recipe, index: Index) -> DataFacts:
    """What the method is built from; UserError: fewer training samples than one global batch."""
    data = recipe.data
    num_training = plan_of(recipe, index).num_training
    return DataFacts(num_training, len(index), recipe.epochs, data.mean, data.std, data.vocabulary)


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


def _stream(recipe: Recipe, index: Index, plan: Plan, method: Method, start: Commit | None) -> Stream:
    """Raises UserError: the shards lack what the method needs."""
    needs, captions = method.needs, captions_of(recipe.data, index)
    if captions is not None and TEXT not in needs.fields:
        raise UserError(f"data.captions: {recipe.method.name} reads no text; leave data.captions out")
    if recipe.data.vocabulary != BYTES and not needs.tokens:
        what = "reads bytes" if TEXT in needs.fields else "reads no text"
        raise UserError(f"data.vocabulary: {recipe.method.name} {what}; leave data.vocabulary out")
    for name in needs.fields:
        if name == TEXT and captions is not None:
            continue
        assert name in FIELDS, f"{recipe.method.name} needs the field {name!r}; there are {', '.join(FIELDS)}"
        there = index.has_labels if name == LABEL else index.extensions_of(name)
        if not there:
            wanted = "cls" if name == LABEL else ", .".join(MEMBER_EXTENSIONS[name])
            cure = "; data.captions makes text of the names of classes" if name == TEXT else ""
            raise UserError(
                f"data.train: {recipe.method.name} needs the field {name}, and no sample has a .{wanted}; there are "
                f".{', .'.join(index.extensions)}{cure}"
            )
    stream = Stream(
        index.path,
        plan,
        recipe.epochs,
        recipe.views,
        needs.fields,
        recipe.data.max_pixels,
        captions=captions,
        vocabulary=_vocabulary(recipe, index, plan, captions, start),
        access=recipe.data.access,
    )
    return stream.measured()


def _vocabulary(
    recipe: Recipe, index: Index, plan: Plan, captions: Captions | None, start: Commit | None
) -> Vocabulary | None:
    size = recipe.data.vocabulary
    if size == BYTES:
        return None
    if start is not None and (kept := Vocabulary.of(start.manifest)):
        return kept
    if captions is not None:
        return of_captions(captions, size)
    return of_samples(Reader(index, access=recipe.data.access), plan, size)


def _bytes_per_sample(recipe: Recipe, method: Method, precision: Precision, stream: Stream) -> int:
    """What a forward keeps for its backward, per sample, measured on a tiny batch.

    Raises UserError: the network cannot take such views.
    """
    sides, fields = sizes_of(recipe), dict[str, torch.Tensor]()
    if stream.fields:
        found = stream.example(max(memory.SIZES)).fields
        fields = {name: torch.from_numpy(np.array(field)) for name, field in found.items()}

    def example(n: int) -> Batch:
        views = [_distinct_images(n, side) for side in sides]
        few = {name: field[torch.arange(n) % len(field)] for name, field in fields.items()}
        # cut where any picture has a pixel
        geometry = [torch.tensor([0.0, 0.0, 1.0, 1.0, 0.0]).expand(n, -1) for _ in sides]
        return Batch(views, torch.arange(n), few, geometry, num_large=num_large(sides))

    def autocast() -> Any:
        return torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")

    try:
        return memory.activation_bytes_per_sample(method, example, autocast)
    except (RuntimeError, ValueError, AssertionError) as error:  # whatever timm's models raise
        shown = (
            f"views of {', '.join(map(str, sides))} pixels"
            if sides
            else f"the field {', '.join(stream.fields)}"
        )
        raise UserError(
            f"{'views' if sides else 'encoder'}: {recipe.method.name} on {recipe.encoder.name} cannot take {shown}: "
            f"{(str(error).splitlines() or ['no reason given'])[0]}"
        ) from None


def _distinct_images(n: int, side: int) -> torch.Tensor:
    """Noise of another mean and spread for every sample, the same whatever n; (n, 3, side, side) channels_last."""
    generator = torch.Generator().manual_seed(0)
    noise = [torch.randn(3, side, side, generator=generator) * (1 + i) + i for i in range(n)]
    return torch.stack(noise).to(memory_format=torch.channels_last)
