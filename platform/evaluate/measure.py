"""Encoders measured on labelled samples: features of both sets, the protocols on them, a report."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from vergence.platform.encoders.encoder import CPU, Embedder
from vergence.platform.encoders.resize import RULE
from vergence.platform.errors import UserError
from vergence.platform.evaluate.features import Features, features
from vergence.platform.evaluate.labelled import Labelled, Pair
from vergence.platform.evaluate.protocols import EvaluationProtocol, Examples, Scores
from vergence.platform.evaluate.report import Data, EncoderFacts, Figure, Report, SetFacts
from vergence.platform.text import printable


class Baseline(NamedTuple):
    """What an encoder should beat.  about: what it is.  embedders: one, or a list of initialisations."""

    about: str
    embedders: Embedder | list[Embedder]


class Measured(NamedTuple):
    """scores: of each embedder, version of each protocol -> scores of the same test samples in the same order."""

    scores: list[dict[str, Scores]]
    bank: SetFacts | None
    test: SetFacts


def measure(
    embedders: Sequence[Embedder],
    pair: Pair,
    protocols: Sequence[EvaluationProtocol],
    *,
    device: torch.device = CPU,
    threads: int,
    cache: Path | None = None,
) -> Measured:
    """Each embedder by each protocol on the same samples: whole sets, less what cannot be read.

    device: where embedders and protocols run.  threads, cache: see `features`; embedders of one input size share a
    reading of the images. A bar is drawn where embedding takes more than two seconds.
    Raises UserError: no image of a set can be read.
    """
    found: list[dict[str, Scores]] = [{} for _ in embedders]
    bank: SetFacts | None = None

    def examples(data: Labelled, some: Sequence[Embedder]) -> tuple[list[Examples], SetFacts]:
        embedded = features(
            some,
            data.index,
            data.ids,
            device=device,
            threads=threads,
            cache=cache,
            progress=f"embedding {printable(data.pattern)}",
        )
        return [_examples(data, each) for each in embedded], _facts(data, embedded[0])

    for size in sorted({embedder.size for embedder in embedders}):
        those = [i for i, embedder in enumerate(embedders) if embedder.size == size]
        some = [embedders[i] for i in those]
        if pair.bank is not None:
            known, bank = examples(pair.bank, some)
        asked, test = examples(pair.test, some)
        if pair.bank is None:
            known = [Examples(each.rows[:0], each.labels[:0]) for each in asked]
        for i, of_bank, of_test in zip(those, known, asked):
            found[i] = {each.definition.version: each.run(of_bank, of_test, device) for each in protocols}
    return Measured(found, bank, test)


def evaluate(
    encoder: Embedder,
    pair: Pair,
    protocols: Sequence[EvaluationProtocol],
    *,
    baselines: Mapping[str, Baseline] | None = None,
    device: torch.device = CPU,
    threads: int,
    cache: Path | None = None,
) -> Report:
    """The report of an encoder, and of baselines by their names; see `measure`."""
    groups = {"encoder": encoder, **{name: each.embedders for name, each in (baselines or {}).items()}}
    embedders = [
        each for group in groups.values() for each in (group if isinstance(group, list) else [group])
    ]
    measured = measure(embedders, pair, protocols, device=device, threads=threads, cache=cache)
    scores, results = iter(measured.scores), dict[str, dict[str, Figure]]()
    for name, group in groups.items():
        if isinstance(group, list):
            of_all = [next(scores) for _ in group]
            results[name] = {key: _seeds([each[key] for each in of_all]) for key in of_all[0]}
        else:
            results[name] = _figures(next(scores))
    return _report(encoder, pair, protocols, measured, results, baselines or {})


def reports(
    embedders: Sequence[Embedder], pair: Pair, protocols: Sequence[EvaluationProtocol], measured: Measured
) -> list[Report]:
    """Of what `measure` found, a report of each embedder."""
    return [
        _report(embedder, pair, protocols, measured, {"encoder": _figures(scores)}, {})
        for embedder, scores in zip(embedders, measured.scores)
    ]


def _report(
    encoder: Embedder,
    pair: Pair,
    protocols: Sequence[EvaluationProtocol],
    measured: Measured,
    results: dict[str, dict[str, Figure]],
    baselines: Mapping[str, Baseline],
) -> Report:
    return Report(
        encoder=EncoderFacts(name=encoder.name, digest=encoder.digest, dim=encoder.dim, size=encoder.size),
        data=Data(
            bank=measured.bank,
            test=measured.test,
            input=f"{encoder.size} x {encoder.size}; {RULE}",
            classes=pair.compared,
            names=None if pair.numbering.names is None else tuple(pair.numbering.names),
            apart=pair.apart,
        ),
        protocols={each.definition.version: dict(each.definition.fixed) for each in protocols},
        results=results,
        baselines={name: each.about for name, each in baselines.items()},
    )


def _figures(scores: Mapping[str, Scores]) -> dict[str, Figure]:
    return {
        key: Figure(top1=each.top1, interval=each.interval, chance=each.chance, settings=dict(each.settings))
        for key, each in scores.items()
    }


def _examples(data: Labelled, features: Features) -> Examples:
    return Examples(features.rows, data.labels[np.searchsorted(data.ids, features.ids)])


def _facts(data: Labelled, features: Features) -> SetFacts:
    if not len(features.ids):
        raise UserError(
            f"{data.pattern}: none of its {len(data.ids):,} images can be read; see `vergence shards check`"
        )
    return SetFacts(
        shards=printable(data.pattern),
        digest=data.index.digest,
        images=len(features.ids),
        unreadable=len(data.ids) - len(features.ids),
        unlabelled=len(data.index) - len(data.ids),
        notes=tuple(data.index.notes),
    )


def _seeds(scores: Sequence[Scores]) -> Figure:
    top1 = tuple(each.top1 for each in scores)
    return Figure(top1=sum(top1) / len(top1), min=min(top1), max=max(top1), seeds=top1)
