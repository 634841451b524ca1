"""`vergence evaluate`: how good frozen encoders are, by versioned protocols."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING

from vergence.platform.cluster.capacity import physical_cpus
from vergence.platform.errors import UserError
from vergence.platform.evaluate.definitions import DEFINITIONS, versions
from vergence.platform.evaluate.report import SCHEMA, Report
from vergence.platform.home import home

if TYPE_CHECKING:
    from vergence.platform.encoders.encoder import LoadedEncoder, ModuleEncoder
    from vergence.platform.encoders.export import EncoderCard
    from vergence.platform.evaluate.labelled import Pair
    from vergence.platform.evaluate.measure import Baseline


def configure(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "encoders",
        metavar="ENCODER",
        nargs="+",
        help="a run's name, a .pt2 file or models:/NAME@ALIAS; several are put into one table",
    )
    parser.add_argument(
        "--train", metavar="SHARDS", required=True, help="labelled shards: all of them are the bank"
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
        action="store_true",
        help="keep the report with the registered version, as file and metrics",
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
  vergence evaluate models:/simclr-cifar10@candidate --train train/ --test test/ --protocol linear --record"""


def main(args: argparse.Namespace) -> int:
    from vergence.platform.encoders.encoder import usable
    from vergence.platform.encoders.load import load_encoder

    if args.seeds < 1:
        raise UserError(f"--seeds: got {args.seeds}, needs at least 1")
    protocols, device = versions(args.protocol.split(",")), usable(args.device)
    encoders = [load_encoder(name) for name in args.encoders]
    if args.record:
        _refuse_unregistered(encoders)
    pair = _pair(args.train, args.test)
    seeds = args.seeds if args.baselines else 0
    reports = [_evaluate(encoder, pair, protocols, seeds, str(device)) for encoder in encoders]
    _print(reports)
    if args.json:
        dumps = [report.dump() for report in reports]
        whole = dumps[0] if len(dumps) == 1 else {"schema": SCHEMA, "reports": dumps}
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(whole, indent=2) + "\n", encoding="utf-8")
        print(f"written: {args.json}")
    if args.record:
        _record(reports)
    return 0


def evaluate(
    encoder: "LoadedEncoder | str",
    train: str,
    test: str,
    *,
    protocols: Sequence[str] = ("knn",),
    seeds: int = 0,
    device: str = "auto",
) -> Report:
    """How well the classes of `test` are told by those of `train` and the encoder's vectors.

    Args:
        encoder: what `load_encoder` gives, or what it takes.
        train, test: labelled shards: the bank, and what is classified.
        protocols: names or versions, "knn", "linear".
        seeds: > 0 adds the baselines: raw pixels, and that many fresh initialisations of the encoder.
        device: auto (a GPU if there is one), cpu, cuda, cuda:N.
    Features are kept in the state folder. Raises UserError: shards without labels, the same shards twice, labels that
    cannot be compared, no recipe for the initialisations, no such encoder, protocol or device.
    """
    from vergence.platform.encoders.load import load_encoder

    chosen = versions(protocols)
    loaded = load_encoder(encoder) if isinstance(encoder, str) else encoder
    return _evaluate(loaded, _pair(train, test), chosen, seeds, device)


def _refuse_unregistered(encoders: "Sequence[LoadedEncoder]") -> None:
    for encoder in encoders:
        if not encoder.name.startswith("models:/"):
            raise UserError(f"--record: {encoder.name} is not in the registry; give models:/NAME@ALIAS")


def _record(reports: Sequence[Report]) -> None:
    """Keep each report with the version that it is of."""
    from vergence.platform.encoders.versions import record, registry

    for report in reports:
        name, version = report.encoder.name.removeprefix("models:/").rsplit("/", 1)
        with registry(report.encoder.name, patient=True) as client:
            record(client, name, int(version), report)
        print(f"recorded: {report.encoder.name}")


def _pair(train: str, test: str) -> "Pair":
    from vergence.platform.evaluate.labelled import in_one_numbering, open_labelled

    bank, asked = (open_labelled(pattern, home() / "index") for pattern in (train, test))
    return in_one_numbering(bank, asked)


def _evaluate(
    encoder: "LoadedEncoder", pair: "Pair", protocols: Sequence[str], seeds: int, device: str
) -> Report:
    from vergence.platform.encoders.encoder import usable
    from vergence.platform.evaluate import measure
    from vergence.platform.evaluate.protocols import PROTOCOLS

    return measure.evaluate(
        encoder,
        pair,
        [PROTOCOLS[version] for version in protocols],
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
    for version in first.protocols:
        print(f"{version}: {words[version]}")
    _print_data(first)


def _note(report: Report, who: str) -> str:
    """What a row's figures depend on besides: spread of the seeds, what was chosen."""
    words = [report.baselines[who]] if who == "raw pixels" else []
    for version, figure in report.results[who].items():
        if figure.seeds:
            words.append(f"{version} of {len(figure.seeds)} seeds {figure.min:.4f} to {figure.max:.4f}")
        elif "C" in figure.settings:
            words.append(f"C {figure.settings['C']:g}")
    return "; ".join(words)


def _print_data(report: Report) -> None:
    data = report.data
    bank, test = data.bank, data.test
    print(
        f"bank {bank.images:,} images of {bank.shards}, test {test.images:,} of {test.shards}; classes {data.classes}"
    )
    if bank.unreadable + test.unreadable:
        print(f"{bank.unreadable + test.unreadable:,} images cannot be read and were left out")
    if data.apart:
        print(data.apart)
    for side in (bank, test):
        for note in side.notes:
            print(f"{side.shards}: {note}")
