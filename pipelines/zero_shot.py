"""What `evaluate --protocol zero_shot` asks an encoder by: its method's side of texts, and captions of the classes."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch

from vergence.methods.method import DataFacts, ReadsText
from vergence.pipelines.handover import trained
from vergence.pipelines.recipe import Recipe, build_method
from vergence.platform.data.captions import Captions
from vergence.platform.data.config import CLASS
from vergence.platform.data.vocabulary import Vocabulary
from vergence.platform.encoders.encoder import LoadedEncoder
from vergence.platform.errors import UserError
from vergence.platform.evaluate.labelled import Labelled
from vergence.platform.evaluate.zero_shot import ByNames
from vergence.platform.home import home
from vergence.platform.runs import commit as commits

TEMPLATE = f"a photo of a {CLASS}."


def by_names(
    encoder: LoadedEncoder, data: Labelled, classes: Sequence[str] | None, templates: Sequence[str]
) -> ByNames:
    """The protocol for one encoder and the classes of some shards.

    classes: their names by number, default: those of the shards. templates: with CLASS in each, default: those that the
    run was trained with, else TEMPLATE. Raises UserError: the encoder has no side of texts at hand, or a class no name.
    """
    recipe, method, vocabulary = _text_side(encoder)
    if not isinstance(method, ReadsText):
        raise UserError(
            f"{encoder.name}: zero_shot tells classes by their names, and {recipe.method.name} reads no text"
        )
    names = _names(data, classes)
    for template in templates:
        if CLASS not in template:
            raise UserError(f"--template {template!r}: has no {CLASS}, where the name of the class stands")
    captions = Captions(tuple(templates) or recipe.data.captions or (TEMPLATE,), names)
    return ByNames(method, captions, vocabulary)


def read_classes(file: Path) -> list[str]:
    """Names of classes by number. Raises UserError: no JSON list of words; OSError."""
    try:
        names = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        names = None
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise UserError(f"{file}: not a JSON list of the classes' names, in the order of their numbers")
    return names


def _text_side(encoder: LoadedEncoder) -> "tuple[Recipe, torch.nn.Module, Vocabulary | None]":
    """Recipe and method of the encoder's run, with the weights of its last commit, and what its texts are made of.

    Exports hold images' side alone.
    """
    card = encoder.card
    if card is None or card.recipe is None:
        raise UserError(
            f"{encoder.name}: zero_shot needs the card of its run, with the recipe, and there is none"
        )
    recipe = Recipe.parse(card.recipe, f"the recipe of {encoder.name}")
    # a method that reads text keeps nothing by sample
    data = recipe.data
    method = build_method(recipe, DataFacts(1, 1, recipe.epochs, data.mean, data.std, data.vocabulary))
    if not isinstance(method, ReadsText):
        return recipe, method, None
    commit = commits.newest(home() / card.name / "commits")
    if commit is None:
        raise UserError(
            f"{encoder.name}: zero_shot needs the side of texts, which is in the commits of run {card.name}; there are none "
            f"in {home()}: copy the run's folder there, or set VERGENCE_HOME"
        )
    try:
        backbone = trained(method, commit).get_submodule("backbone").state_dict()
    except RuntimeError:
        backbone = {}
    own = encoder.backbone_weights
    if backbone.keys() != own.keys() or any(
        not torch.equal(own[key].cpu(), backbone[key].float()) for key in own
    ):
        raise UserError(
            f"{encoder.name}: the last commit of run {card.name} in {home()} has other weights than this encoder: another "
            "run of that name, or one that went on; evaluate what that run exported"
        )
    return recipe, method, Vocabulary.of(commit.manifest)


def _names(data: Labelled, classes: Sequence[str] | None) -> tuple[str, ...]:
    names = data.names if classes is None else classes
    if names is None:
        raise UserError(
            f"{data.pattern}: its classes are numbers without names; give --classes FILE, a JSON list of them in order, or "
            "write it as classes.json beside the shards"
        )
    most = len(data.names) if data.names is not None else int(data.labels.max()) + 1
    if len(names) < most or (data.names is not None and len(names) != most):
        raise UserError(f"--classes: names {len(names)} classes, those of {data.pattern} are {most}")
    return tuple(names)
