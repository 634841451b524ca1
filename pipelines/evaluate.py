"""`vergence evaluate`: how good frozen encoders are, by versioned protocols."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, NamedTuple

from vergence.platform.cluster.capacity import physical_cpus
from vergence.platform.data.config import CLASS
from vergence.platform.errors import UserError, VergenceError
from vergence.platform.evaluate.definitions import BANKED, DEFINITIONS, ZERO_SHOT, versions
from vergence.platform.evaluate.report import SCHEMA, Report
from vergence.platform.home import home

if TYPE_CHECKING:
    from vergence.platform.encoders.encoder import LoadedEncoder, ModuleEncoder
    from vergence.platform.encoders.export import EncoderCard
    from vergence.platform.evaluate.labelled import Pair
    from vergence.platform.evaluate.measure import Baseline
    from vergence.platform.evaluate.protocols import EvaluationProtocol

REGISTERED = "models:/"  # how names of the registry begin


def configure(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "encoders",
        metavar="ENCODER",
        nargs="+",
        help="a run's name, a .pt2 file or models:/NAME@ALIAS; several are put into one table",
    )
    parser.add_argument(
        "--train",
        metavar="SHARDS",
        help="labelled shards: all of them are the bank; zero_shot alone needs none",
    )
    parser.add_argument(
        "--test", metavar="SHARDS", required=True, help="labelled shards: all of them are classified"
    )
    parser.add_argument(
        "--protocol",
        metavar="NAME[,NAME]",
        default="knn",
        help=f"{', '.join(DEFINITIONS)}, or several with commas between (default knn)",
    )
    parser.add_argument(
        "--classes",
        metavar="FILE",
        type=Path,
        help="for zero_shot: names of the classes by number, a JSON list (default: the shards' own)",
    )
    parser.add_argument(
        "--template",
        metavar="TEXT",
        action="append",
        default=[],
        help=f"for zero_shot: text with {CLASS} in it, several times for several (default: those of the run's recipe, else "
        f'"a photo of a {CLASS}.")',
    )
    parser.add_argument(
        "--baselines", action="store_true", help="also raw pixels, and the encoder as it was before training"
    )
    parser.add_argument("--seeds", type=int, default=3, help="initialisations of the latter (default 3)")
    parser.add_argument(
        "--device", default="auto", help="cpu, cuda or cuda:N (default: a GPU if there is one)"
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write the figures with their protocols there too"
    )
    parser.add_argument(
        "--record",
        action=argparse.BooleanOptionalAction,
        help="keep the report with the registered version, as file and metrics (default: of those that models:/ names)",
    )
    told = "\n".join(
        fill(f"{name} = {each.version}: {each.words}.", 118, initial_indent="  ", subsequent_indent="    ")
        for name, each in DEFINITIONS.items()
    )
    parser.epilog = f"""\
protocols, each frozen under its version, so that figures of one version can be compared:
{told}

Features are kept in the state folder for a month: a second protocol, or the same command again, embeds nothing anew,
and an interrupted command goes on where it was.

examples:
  vergence evaluate simclr-cifar10 --train "cifar10/train-*.tar" --test "cifar10/test-*.tar"
  vergence evaluate simclr byol mocov2 --train train/ --test test/ --protocol knn,linear
  vergence evaluate models:/simclr-cifar10@champion --train train/ --test test/ --baselines --json knn.json
  vergence evaluate models:/simclr-cifar10@candidate --train train/ --test test/ --protocol linear
  vergence evaluate clip-cifar10 --test "cifar10/test-*.tar" --protocol zero_shot --template "a photo of a {{class}}."
"""


def main(args: argparse.Namespace) -> int:
    from vergence.platform.encoders.encoder import usable
    from vergence.platform.encoders.load import load_encoder

    if args.seeds < 1:
        raise UserError(f"--seeds: got {args.seeds}, needs at least 1")
    protocols, device = versions(args.protocol.split(",")), usable(args.device)
    encoders = [load_encoder(name) for name in args.encoders]
    if args.record:
        _refuse_unregistered(encoders)
    seeds = args.seeds if args.baselines else 0
    _refuse_without_bank(protocols, args.train, seeds)
    pair = _pair(args.train, args.test)
    asked = Asked(protocols, _classes(args.classes), args.template)
    reports = [_evaluate(encoder, pair, asked, seeds, str(device)) for encoder in encoders]
    _print(reports)
    if args.json:
        dumps = [report.dump() for report in reports]
        whole = dumps[0] if len(dumps) == 1 else {"schema": SCHEMA, "reports": dumps}
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(whole, indent=2) + "\n", encoding="utf-8")
        print(f"written: {args.json}")
    if args.record is not False:
        _record(reports, strict=bool(args.record))
    return 0


def evaluate(
    encoder: "LoadedEncoder | str",
    train: str | None,
    test: str,
    *,
    protocols: Sequence[str] = ("knn",),
    classes: Sequence[str] | None = None,
    templates: Sequence[str] = (),
    seeds: int = 0,
    device: str = "auto",
) -> Report:
    """How well the classes of `test` are told by those of `train` and the encoder's vectors, or by their names.

    Args:
        encoder: what `load_encoder` gives, or what it takes.
        train, test: labelled shards: the bank, and what is classified; zero_shot alone needs no bank, None.
        protocols: names or versions, "knn", "linear", "zero_shot".
        classes: their names by number, for zero_shot; default: those of the shards.
        templates: for zero_shot, with {class} in each; default: those of the run's recipe, else "a photo of a {class}.".
        seeds: > 0 adds the baselines: raw pixels, and that many fresh initialisations of the encoder.
        device: auto (a GPU if there is one), cpu, cuda, cuda:N.
    Features are kept in the state folder. Raises UserError: shards without labels, the same shards twice, labels that
    cannot be compared, no recipe for the initialisations, no such encoder, protocol or device; for zero_shot no side of
    texts at hand (the run's commits), or classes without names.
    """
    from vergence.platform.encoders.load import load_encoder

    chosen = versions(protocols)
    loaded = load_encoder(encoder) if isinstance(encoder, str) else encoder
    _refuse_without_bank(chosen, train, seeds)
    return _evaluate(loaded, _pair(train, test), Asked(chosen, classes, templates), seeds, device)


def _refuse_unregistered(encoders: "Sequence[LoadedEncoder]") -> None:
    for encoder in encoders:
        if not encoder.name.startswith(REGISTERED):
            raise UserError(f"--record: {encoder.name} is not in the registry; give models:/NAME@ALIAS")


def _record(reports: Sequence[Report], *, strict: bool) -> None:
    """Keep each report with the version that it is of.

    strict: asked for; else what is not in the registry is left out, and what the registry does not take is only said.
    """
    from vergence.platform.encoders.versions import record, registry

    for report in (each for each in reports if each.encoder.name.startswith(REGISTERED)):
        name, version = report.encoder.name.removeprefix(REGISTERED).rsplit("/", 1)
        try:
            with registry(report.encoder.name, patient=True) as client:
                record(client, name, int(version), report)
        except VergenceError as error:
            if strict:
                raise
            print(f"not recorded: {error}")
        else:
            print(f"recorded: {report.encoder.name}")


class Asked(NamedTuple):
    """protocols: versions.  classes, templates: of zero_shot; None, (): their defaults."""

    protocols: Sequence[str]
    classes: Sequence[str] | None
    templates: Sequence[str]

    def of(self, encoder: "LoadedEncoder", pair: "Pair") -> "list[EvaluationProtocol]":
        from vergence.platform.evaluate.protocols import PROTOCOLS

        return [PROTOCOLS.get(version) or self._by_names(encoder, pair) for version in self.protocols]

    def _by_names(self, encoder: "LoadedEncoder", pair: "Pair") -> "EvaluationProtocol":
        from vergence.pipelines.zero_shot import by_names

        return by_names(encoder, pair.numbering, self.classes, self.templates)


def _refuse_without_bank(protocols: Sequence[str], train: str | None, seeds: int) -> None:
    by_bank = [each.version for each in BANKED.values() if each.version in protocols]
    if train is None and by_bank:
        raise UserError(f"--train: {by_bank[0]} needs labelled shards as its bank")
    if seeds and len(by_bank) < len(protocols):
        raise UserError(
            f"--baselines: pixels and untrained encoders read no names; what {ZERO_SHOT.version} is beside is chance, in "
            "the table: leave --baselines out, or measure it in a command of its own"
        )


def _classes(file: Path | None) -> list[str] | None:
    if file is None:
        return None
    from vergence.pipelines.zero_shot import read_classes

    return read_classes(file)


def _pair(train: str | None, test: str) -> "Pair":
    from vergence.platform.evaluate.labelled import Pair, in_one_numbering, open_labelled

    asked = open_labelled(test, home() / "index")
    if train is None:
        return Pair(None, asked, "told by their names", None)
    return in_one_numbering(open_labelled(train, home() / "index"), asked)


def _evaluate(encoder: "LoadedEncoder", pair: "Pair", asked: Asked, seeds: int, device: str) -> Report:
    from vergence.platform.encoders.encoder import usable
    from vergence.platform.evaluate import measure

    return measure.evaluate(
        encoder,
        pair,
        asked.of(encoder, pair),
        baselines=_baselines(encoder, seeds) if seeds else None,
        device=usable(device),
        threads=physical_cpus(),
        cache=home() / "features",
    )


def _baselines(encoder: "LoadedEncoder", seeds: int) -> "dict[str, Baseline]":
    from vergence.platform.evaluate.measure import Baseline
    from vergence.platform.evaluate.pixels import Pixels

    card = _card(encoder)
    pixels = Pixels(encoder.size, card.mean, card.std)
    fresh = [initialised(encoder, seed) for seed in range(seeds)]
    return {
        "raw pixels": Baseline(pixels.about, pixels),
        "as initialised": Baseline("the encoder of the same recipe before training, a seed each", [*fresh]),
    }


def initialised(encoder: "LoadedEncoder", seed: int) -> "ModuleEncoder":
    """The encoder before training, in eval mode (running statistics 0 and 1), from its run's recipe."""
    from vergence.pipelines.recipe import Recipe, initial_encoder
    from vergence.platform.encoders.encoder import ModuleEncoder

    card = _card(encoder)
    if card.recipe is None:
        raise UserError(
            f"{encoder.name}: its card holds no recipe, so --baselines cannot build it as initialised"
        )
    untrained = initial_encoder(Recipe.parse(card.recipe, f"the recipe of {encoder.name}"), seed)
    return ModuleEncoder.of(
        untrained, f"{encoder.name}, seed {seed}", size=card.size, mean=card.mean, std=card.std
    )


def _card(encoder: "LoadedEncoder") -> "EncoderCard":
    if encoder.card is None:
        raise UserError(
            f"{encoder.name}: --baselines needs the card encoder.json, which is not beside this encoder"
        )
    return encoder.card


def _print(reports: Sequence[Report]) -> None:
    """One table of all reports, and under it the protocols and the data."""
    from rich.console import Console
    from rich.table import Table

    first = reports[0]
    title = f"{first.encoder.name}: " if len(reports) == 1 else ""
    table = Table(title=f"{title}top-1")
    table.add_column("")
    for version in first.protocols:
        table.add_column(version, justify="right")
    table.add_column("", style="dim")
    for report in reports:
        for who, figures in report.results.items():
            name = who if len(reports) == 1 else report.encoder.name if who == "encoder" else f"  {who}"
            cells = [f"{figure.top1:.4f}" for figure in figures.values()]
            table.add_row(name, *cells, _note(report, who))
    Console().print(table)
    words = {each.version: each.words for each in DEFINITIONS.values()}
    for version, fixed in first.protocols.items():
        print(f"{version}: {words[version]}")
        if "templates" in fixed:
            print(f"captions: {'; '.join(fixed['templates'])} of {len(fixed['classes'])} classes")
    _print_data(first)


def _note(report: Report, who: str) -> str:
    """What a row's figures depend on besides: spread of the seeds, what was chosen."""
    words = [report.baselines[who]] if who == "raw pixels" else []
    for version, figure in report.results[who].items():
        if figure.seeds:
            words.append(f"{version} of {len(figure.seeds)} seeds {figure.min:.4f} to {figure.max:.4f}")
        elif "C" in figure.settings:
            words.append(f"C {figure.settings['C']:g}")
        elif figure.chance is not None and figure.interval is not None:
            low, high = figure.interval
            words.append(f"{version} 95 % {low:.4f} to {high:.4f}, chance {figure.chance:.4f}")
    return "; ".join(words)


def _print_data(report: Report) -> None:
    data = report.data
    bank, test = data.bank, data.test
    told = f"bank {bank.images:,} images of {bank.shards}, test" if bank else "no bank, test"
    print(f"{told} {test.images:,} of {test.shards}; classes {data.classes}")
    sides = [side for side in (bank, test) if side]
    unreadable = sum(side.unreadable for side in sides)
    if unreadable:
        print(f"{unreadable:,} images cannot be read and were left out")
    if data.apart:
        print(data.apart)
    for side in sides:
        for note in side.notes:
            print(f"{side.shards}: {note}")
