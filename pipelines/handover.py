"""What follows training: export, pictures and registration, each of them once."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from torch import nn

from vergence.methods.method import Method
from vergence.pipelines.recipe import Recipe
from vergence.pipelines.resolve import plan_of, provenance
from vergence.platform.augment.sheet import contact_sheet
from vergence.platform.augment.views import Views
from vergence.platform.data.index import Index
from vergence.platform.data.plan import Plan
from vergence.platform.data.read import Reader
from vergence.platform.encoders.export import (
    CARD,
    PROGRAM,
    WEIGHTS,
    EncoderCard,
    export_encoder,
    export_weights,
    read_card,
)
from vergence.platform.encoders.registry import TrainedOn, register
from vergence.platform.errors import VergenceError
from vergence.platform.mlflow_errors import explain
from vergence.platform.mlflow_store import tracking_uri
from vergence.platform.runs import commit as commits
from vergence.platform.runs import plots
from vergence.platform.runs.records import Monitored, Tail
from vergence.platform.runs.run import Run
from vergence.platform.runs.track import Tracker

Says = Callable[[str], None]


def hand_over(recipe: Recipe, run: Run, index: Index, method: Method, tracker: Tracker, says: Says) -> None:
    """Export the encoder of the final commit, draw and register what is missing, and mark the run finished.

    method: built from the recipe, takes the final weights. Raises VergenceError: the final commit is damaged, the
    exported program differs from the encoder, or the registry does not take it.
    """
    plan = plan_of(recipe, index)
    final = commits.newest_intact(run.commits)
    if final is None or final.step < recipe.epochs * plan.batches_per_epoch:
        raise VergenceError(f"run {run.name}: its last commit is damaged; the same command trains it again")
    _tell_counts(final, run, says)
    card = _card(recipe, run, index, method, final)
    whole = bool(recipe.size)  # else there is no size of image to export it for
    if not _is_exported(run, PROGRAM if whole else WEIGHTS, card):
        says("exporting the encoder" if whole else "exporting the encoder's weights: it takes no images")
        (export_encoder if whole else export_weights)(trained(method, final), card, run.exports)
    plots.draw(run.logs)
    if recipe.views:
        _draw_views(recipe, index, plan, run.logs / "plots" / "views.png")
    name = recipe.track.register_as
    if name is not None and run.facts().version is None:
        run.remember(version=_register(run, name, card, TrainedOn(recipe.data.train, index), tracker, says))
    run.initial_file.unlink(missing_ok=True)
    run.remember(finished=True)


def _is_exported(run: Run, name: str, card: EncoderCard) -> bool:
    """Whether the export is there, and not that of fewer epochs."""
    if not (run.exports / name).exists():
        return False
    try:
        return read_card(run.exports / CARD).images_seen == card.images_seen
    except (OSError, ValueError):
        return False


def trained(method: Method, final: commits.Commit) -> nn.Module:
    """The encoder with the weights of a commit."""
    state, prefix = commits.load_state(final), "model."
    method.load_state_dict(
        {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    )
    return method.encoder


def _register(run: Run, name: str, card: EncoderCard, data: TrainedOn, tracker: Tracker, says: Says) -> int:
    """The version of model `name` that holds the export, made by this run's MLflow run."""
    uri = tracking_uri()
    says(f"registering {name} at {uri}")
    try:
        run_id = tracker.open()
        return register(run.exports, name, run_id=run_id, tags=_tags(card), tracking_uri=uri, data=data)
    except Exception as error:
        reason = str(error) if isinstance(error, VergenceError) else explain(error, uri)
        raise VergenceError(
            f"run {run.name} is trained and exported to {run.exports}, but not registered: {reason}; "
            f"give the same command again to register it"
        ) from None


def _draw_views(recipe: Recipe, index: Index, plan: Plan, path: Path) -> None:
    """A sheet of a few training images and the views that the run makes of them."""
    ids = plan.training_ids(np.arange(min(8, plan.num_training)))
    images = Reader(index, recipe.data.max_pixels, recipe.data.access).images(ids)
    good = [i for i, image in enumerate(images) if isinstance(image, np.ndarray)]
    views = Views(recipe.views, seed=recipe.seed, mean=recipe.data.mean, std=recipe.data.std)
    contact_sheet([np.asarray(images[i]) for i in good], ids[good], views, path)


def _card(recipe: Recipe, run: Run, index: Index, method: Method, final: commits.Commit) -> EncoderCard:
    source = provenance(recipe, index)
    return EncoderCard(
        name=run.name,
        method=recipe.method.name,
        backbone=recipe.encoder.model_dump(),
        dim=method.encoder.dim,
        size=recipe.size,
        mean=recipe.data.mean,
        std=recipe.data.std,
        images_seen=final.step * recipe.batch.global_batch,
        recipe_digest=source["recipe_digest"],
        data_digest=source["data_digest"],
        code_version=source["code_version"],
        metrics=_scores(run, final),
        recipe=source["recipe"],
    )


def _scores(run: Run, final: commits.Commit) -> dict[str, float]:
    """The monitor's score of the final commit, and what names alone told it, where the text is made of them."""
    if final.score is None:
        return {}
    with Tail(run.logs) as tail:
        told = [record.values for record in tail.read() if isinstance(record, Monitored)]
    names = {name: value for name, value in (told[-1] if told else {}).items() if name == "zero_shot"}
    return {final.score_name: final.score, **names}


def _tell_counts(final: commits.Commit, run: Run, says: Says) -> None:
    counts = final.manifest["counts"]
    if counts["bad"]:
        says(f"{counts['bad']} unreadable samples were replaced; they are named in {run.logs}/rank-*.log")
    if counts["skipped"]:
        says(f"{counts['skipped']} steps were skipped: loss or gradients were not finite")


def _tags(card: EncoderCard) -> dict[str, str]:
    """Version tags of the registry."""
    return {
        "method": card.method,
        "backbone": card.backbone["name"],
        "dimension": str(card.dim),
        "recipe_digest": card.recipe_digest,
        "data_digest": card.data_digest,
        "images_seen": str(card.images_seen),
        "code_version": card.code_version,
    }
