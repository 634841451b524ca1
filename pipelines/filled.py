"""What `auto`, a preset or a default left open comes to: shown beside the setting, never part of the recipe's identity."""

from typing import Any

from vergence.pipelines.recipe import Recipe, flatten
from vergence.pipelines.settings import commented
from vergence.platform import yaml
from vergence.platform.augment.presets import ViewSpec
from vergence.platform.train.layout import Layout

OPEN = (None, "auto")  # values that leave something to be filled


def filled(recipe: Recipe, layout: Layout, num_samples: int) -> dict[str, Any]:
    """Dotted path -> the value that holds, of the settings that the recipe leaves open.

    Views of a preset that differ have a list of values, one a view.
    """
    decay_1d = recipe.optim.name == "sgd"
    values = {
        "data.holdout": recipe.data.holdout_share(num_samples),
        "precision": layout.precision,
        "encoder.image_size": recipe.size or None,
        "norm.group": layout.norm_group,
        "norm.span": layout.norm_span,
        "batch.micro": layout.micro,
        "batch.regime": layout.regime,
        "optim.decay_1d": decay_1d,
    }
    for i, spec in enumerate(recipe.views):
        values |= {f"views.{i}.{name}": value for name, value in _drawn(spec).items()}
    given = flatten(recipe.dump())
    return {path: value for path, value in values.items() if value is not None and given.get(path, 0) in OPEN}


def shown(recipe: Recipe, values: dict[str, Any]) -> str:
    """The recipe as YAML that reads back to it, with what was filled beside what was left open."""

    def remark(path: str) -> str:
        if path not in values:
            return ""
        preset = recipe.views[int(path.split(".")[1])].recipe if path.startswith("views.") else None
        return f"{yaml.dump_inline(values[path])}, {f'of {preset}' if preset else 'filled in'}"

    return commented(recipe.dump(), remark)


def _drawn(spec: ViewSpec) -> dict[str, Any]:
    """Of each setting of the views the value that is drawn by."""
    settings = [each._asdict() for each in spec.augmentations()]
    columns = {name: [each[name] for each in settings] for name in settings[0]}
    return {name: same[0] if all(v == same[0] for v in same) else same for name, same in columns.items()}
