"""The recipe: one YAML file that says everything about a run, checked before anything starts."""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union

import torch
from pydantic import BaseModel, Field, NonNegativeInt, PositiveInt, ValidationError, field_validator
from safetensors.torch import load_file

from vergence.methods.catalog import METHODS
from vergence.methods.method import DataFacts, Encoder, Method
from vergence.methods.parts.backbones import EncoderConfig, build_encoder
from vergence.methods.schedule import SCHEDULE_TAG, Schedule
from vergence.pipelines.shipped import file_of
from vergence.platform import yaml
from vergence.platform.augment.presets import ViewSpec
from vergence.platform.cluster.capacity import AskedScale
from vergence.platform.data.config import DataConfig
from vergence.platform.encoders.pretrained import Initial, fill
from vergence.platform.errors import UserError, nearest
from vergence.platform.evaluate.config import MonitorConfig
from vergence.platform.runs.commit import CommitConfig
from vergence.platform.runs.track import TrackConfig
from vergence.platform.schema import SCHEMA, foreign
from vergence.platform.text import printable
from vergence.platform.train.exact import BatchConfig
from vergence.platform.train.norms import NormConfig
from vergence.platform.train.optim.config import OptimConfig
from vergence.platform.train.schedule import ScheduleConfig

if TYPE_CHECKING:
    MethodConfig = Any
else:
    MethodConfig = Annotated[Union[tuple(c for c, _ in METHODS.values())], Field(discriminator="name")]  # noqa: UP007

# What may change between the attempts of one run; data.train is held by the data digest instead.
OPERATIONAL = (
    "scale",
    "batch.micro",
    "commit",
    "monitor",
    "track",
    "data.train",
    "data.readers",
    "data.reader_cpus",
    "data.cache",
    "data.patience",
)


class Recipe(BaseModel, frozen=True, extra="forbid", strict=True):
    schema_version: int = Field(
        SCHEMA, alias="schema", description="of the recipe's form; another version of Vergence has another"
    )
    seed: NonNegativeInt = Field(
        0, lt=2**63, description="of the initial weights, the order and the augmentation"
    )
    epochs: PositiveInt = Field(le=10**6, description="passes over the training samples")
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="bf16 = autocast with fp32 weights; auto = bf16 where the hardware has it"
    )
    method: MethodConfig
    encoder: EncoderConfig = EncoderConfig()
    data: DataConfig
    views: tuple[ViewSpec, ...] = ()
    norm: NormConfig = NormConfig()
    batch: BatchConfig
    optim: OptimConfig
    schedule: ScheduleConfig = ScheduleConfig()
    scale: AskedScale = AskedScale()
    monitor: MonitorConfig = MonitorConfig()
    commit: CommitConfig = CommitConfig()
    track: TrackConfig = TrackConfig()

    @property
    def size(self) -> int:
        """Side in pixels at which the encoder is monitored and exported: its own, or that of the largest view."""
        return self.encoder.image_size or max((spec.size for spec in self.views), default=0)

    @field_validator("schema_version")
    @classmethod
    def _ours(cls, schema: int) -> int:
        if other := foreign(schema):
            raise ValueError(f"this recipe is of {other}; see `vergence methods --settings`")
        return schema

    def dump(self) -> dict[str, Any]:
        """Every setting, defaults included, as plain values that `Recipe.parse` reads back."""
        return self.model_dump(mode="json", by_alias=True)

    def identity(self) -> dict[str, Any]:
        """Setting -> value, by dotted path, of all that makes two runs different runs."""
        flat = flatten(self.dump())
        return {
            path: value
            for path, value in flat.items()
            if not any(path == name or path.startswith(name + ".") for name in OPERATIONAL)
        }

    def digest(self) -> str:
        """sha256 of the identity, 16 hex digits."""
        return hashlib.sha256(json.dumps(self.identity(), sort_keys=True).encode()).hexdigest()[:16]

    @classmethod
    def parse(cls, raw: Any, where: str) -> "Recipe":
        """The validated recipe; UserError with each wrong setting by path and its nearest valid name."""
        if not isinstance(raw, Mapping):
            raise UserError(f"{where}: a recipe is a mapping of settings, got {type(raw).__name__}")
        for path, value in flatten(raw).items():
            if isinstance(value, str) and not value.isascii() and printable(value) != value:
                raise UserError(
                    f"{where}: {path}={printable(value)}: a recipe is text in UTF-8; write ? for each byte of a path that "
                    "is none, as in a pattern"
                )
        try:
            return cls.model_validate_json(json.dumps(raw, allow_nan=False))
        except ValidationError as error:
            raise UserError(f"{where}: {'; '.join(explain_all(error.errors(), raw))}") from None
        except (TypeError, ValueError) as error:
            raise UserError(f"{where}: a value is no number, word, list or mapping: {error}") from None


def flatten(value: Any, path: str = "") -> dict[str, Any]:
    """Leaves of nested mappings and lists by dotted path."""
    if isinstance(value, Mapping):
        items: Iterable[tuple[Any, Any]] = value.items()
    elif isinstance(value, list) and value and isinstance(value[0], Mapping):
        items = enumerate(value)
    else:
        return {path: value}
    leaves: dict[str, Any] = {}
    for key, inner in items:
        leaves |= flatten(inner, f"{path}.{key}" if path else str(key))
    return leaves


def explain_all(errors: Sequence[Any], raw: Any) -> list[str]:
    """pydantic's errors as phrases, one a setting; what only follows from a mistake further down is left out."""
    by_path: dict[str, list[Any]] = {}
    for error in errors:
        by_path.setdefault(".".join(_path(error)), []).append(error)
    return [
        explain(same, path, raw)
        for path, same in by_path.items()
        if not any(other.startswith(f"{path}.") for other in by_path)
    ]


def _path(error: Any) -> list[str]:
    """Names from the top to the setting, without what pydantic adds: the method's name, branches of a union."""
    loc = [str(part) for i, part in enumerate(error["loc"]) if not (i == 1 and error["loc"][0] == "method")]
    last = loc[-1:] if error["type"] == "extra_forbidden" else []  # the user's word
    return [part for part in loc[: len(loc) - len(last)] if not re.search(r"[-\[]", part)] + last


def explain(same: Sequence[Any], path: str, raw: Any) -> str:
    """The errors of one setting (several: none of a union's forms fits) as one phrase."""
    error = same[0]
    loc = path.split(".")
    if error["type"] == "extra_forbidden":
        return f"{path} is not a setting ({nearest(str(loc[-1]), _settings(error['loc']))})"
    if error["type"] == "missing":
        return f"{path} is missing"
    if error["type"] in ("union_tag_invalid", "union_tag_not_found"):
        got = raw["method"].get("name") if isinstance(raw.get("method"), Mapping) else raw.get("method")
        return f"method.name: got {got!r} ({nearest(str(got), METHODS)})"
    if error["type"] == "literal_error" and isinstance(error["input"], str):
        valid = error["ctx"]["expected"].replace("'", "").replace(" or ", ", ").split(", ")
        return f"{path}: got {error['input']!r} ({nearest(error['input'], valid)})"
    messages = [item["msg"].removeprefix("Value error, ") for item in same]
    message = " or ".join([messages[0], *(text.removeprefix("Input should be ") for text in messages[1:])])
    return f"{path}: {message[0].lower()}{message[1:]}, got {error['input']!r}"


def section(annotation: Any) -> Any:
    """The section that a field holds, itself or as the items of a list; None for a plain setting."""
    inner = (annotation, *getattr(annotation, "__args__", ()))
    return next((each for each in inner if isinstance(each, type) and issubclass(each, BaseModel)), None)


def _annotation(model: Any, name: str) -> Any:
    """Type of the setting with this name in a section; None where there is no such section or setting."""
    fields = getattr(model, "model_fields", {}).items()
    return next((field.annotation for key, field in fields if name in (key, field.alias)), None)


def _settings(loc: Sequence[Any]) -> list[str]:
    """Names of the settings at the level of the last part of a pydantic location."""
    model: Any = Recipe
    for i, part in enumerate(loc[:-1]):
        if i == 1 and loc[0] == "method":
            model = METHODS[part][0]
        elif part == SCHEDULE_TAG:
            model = Schedule
        elif isinstance(part, str):
            model = section(_annotation(model, part))
    return [field.alias or name for name, field in model.model_fields.items()]


def override(raw: Any, assignments: Sequence[str]) -> Any:
    """The raw recipe with `path.to.setting=value` applied in order; values are YAML."""
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        if not equals or not path:
            raise UserError(f"{assignment!r} is not an override; write setting=value, e.g. batch.global=256")
        parts: list[Any] = [int(part) if part.isdigit() else part for part in path.split(".")]
        node = raw
        for part, following in zip(parts, [*parts[1:], None]):
            try:
                if following is None:
                    literal = _is_text(parts) and text != "null"
                    node[part] = text if literal else yaml.parse(text, f"override {path}")
                elif isinstance(node, dict):
                    node = node.setdefault(part, {})
                else:
                    node = node[part]
            except (TypeError, IndexError, KeyError):
                raise UserError(f"override {assignment!r}: {path} does not lead to a setting") from None
    return raw


def _is_text(parts: Sequence[Any]) -> bool:
    """Whether the setting at this path is a word or null: a pattern such as *.tar is then no YAML."""
    model: Any = Recipe
    *above, name = [part for part in parts if isinstance(part, str)]  # items of a list have the list's type
    for part in above:
        model = section(_annotation(model, part))
    return _annotation(model, name) in (str, str | None)


def load_recipe(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """A shipped recipe by name, or a file by path, with overrides; raises UserError."""
    path = file_of("recipe", name)
    raw = yaml.read(path)
    before = _method_of(raw)
    changed = override(raw, overrides)
    try:
        return Recipe.parse(changed, path.name)
    except UserError:
        after = _method_of(changed)
        if before in METHODS and after in METHODS and after != before:
            raise UserError(
                f"method.name={after}: {name} is a recipe of {before}, whose settings {after} has not; take one of its "
                f"own (`vergence methods {after}` lists them), or give its section anew: 'method={{name: {after}}}'"
            ) from None
        raise


def _method_of(raw: Any) -> Any:
    section = raw.get("method") if isinstance(raw, Mapping) else None
    return section.get("name") if isinstance(section, Mapping) else None


def build_method(
    recipe: Recipe, data: DataFacts, initial: Path | Mapping[str, torch.Tensor] | None = None
) -> Method:
    """The method with its encoder, initialised from the recipe's seed; UserError for what cannot be built.

    initial: the encoder's state, or a safetensors file with it, in the place of what the seed draws: it is there before
    the method makes teachers of the encoder.
    """
    with _seeded(recipe.seed):
        _, method = METHODS[recipe.method.name]
        encoder = _encoder(recipe)
        if initial is not None:
            encoder.load_state_dict(load_file(initial) if isinstance(initial, Path) else initial)
        return method.build(recipe.method, encoder, data)


def pretrained(recipe: Recipe) -> Initial | None:
    """What `encoder.pretrained` comes to, checked; None without it. Raises UserError."""
    if recipe.encoder.pretrained is None:
        return None
    with _seeded(recipe.seed):
        return fill(_encoder(recipe), recipe.encoder)


def initial_encoder(recipe: Recipe, seed: int) -> Encoder:
    """The encoder before training: with the recipe's own seed, that of `build_method`; or the pretrained one."""
    with _seeded(seed):
        encoder = _encoder(recipe)
    if recipe.encoder.pretrained is not None:
        fill(encoder, recipe.encoder)
    return encoder


def _encoder(recipe: Recipe) -> Encoder:
    mean, std = recipe.data.mean, recipe.data.std
    if recipe.encoder.split and (any(mean) or any(x != 1 for x in std)):
        raise UserError(
            f"encoder.split={recipe.encoder.split} takes pixels in [0, 1], got data.mean={list(mean)} "
            f"data.std={list(std)}; use data.mean=[0.0,0.0,0.0] data.std=[1.0,1.0,1.0]"
        )
    return build_encoder(recipe.encoder, recipe.method.zero_init_residual, recipe.size or None)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            yield
    except (ValueError, RuntimeError, MemoryError) as error:  # torch: sizes that are too large
        raise UserError(f"recipe: {(str(error).splitlines() or ['not enough memory'])[0]}") from None
