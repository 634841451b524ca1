"""`vergence evaluate`: how good a frozen encoder is, by one versioned protocol."""

import argparse
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from vergence.platform.cluster.capacity import physical_cpus
from vergence.platform.errors import UserError
from vergence.platform.home import home
from vergence.platform.text import printable

if TYPE_CHECKING:
    import numpy as np

    from vergence.platform.data.index import Index
    from vergence.platform.encoders.export import EncoderCard
    from vergence.platform.encoders.load import LoadedEncoder

# knn-v1 is frozen: another choice of any of these is another version
PROTOCOL, K, TEMPERATURE = "knn-v1", 20, 0.1
PIXEL_FEATURES = "the encoder's input: pixels normalised by its mean and std, flattened"
PIXELS = 32  # side at which raw pixels are compared: a larger picture only costs memory


def configure(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("encoder", metavar="ENCODER", help="a run's name, a .pt2 file or models:/NAME@ALIAS")
    parser.add_argument(
        "--train", metavar="SHARDS", required=True, help="labelled shards: all of them are the bank"
    )
    parser.add_argument(
        "--test", metavar="SHARDS", required=True, help="labelled shards: all of them are classified"
    )
    parser.add_argument(
        "--protocol", choices=["knn"], default="knn", help=f"knn: {PROTOCOL}, below (the default)"
    )
    parser.add_argument(
        "--baselines", action="store_true", help="also raw pixels, and the encoder as it was before training"
    )
    parser.add_argument("--seeds", type=int, default=3, help="initialisations of the latter (default 3)")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write the figures with the protocol there too"
    )
    parser.epilog = f"""\
{PROTOCOL}: the class of a test image is voted by its {K} nearest images of --train in cosine similarity s of
the encoder's float32 output, weight exp(s / {TEMPERATURE}); ties go to the lower id and the lower class.

examples:
  vergence evaluate simclr-cifar10 --train "cifar10/train-*.tar" --test "cifar10/test-*.tar"
  vergence evaluate models:/simclr-cifar10@champion --train train/ --test test/ --baselines --json knn.json"""


def main(args: argparse.Namespace) -> int:
    from vergence.platform.encoders.load import load_encoder

    if args.seeds < 1:
        raise UserError(f"--seeds: got {args.seeds}, needs at least 1")
    encoder = load_encoder(args.encoder)
    report = evaluate(encoder, args.train, args.test, seeds=args.seeds if args.baselines else 0)
    _print(report)
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        print(f"written: {args.json}")
    return 0


def evaluate(encoder: "LoadedEncoder", train: str, test: str, *, seeds: int = 0) -> dict[str, Any]:
    """Top-1 by knn-v1, with the protocol that made it, as plain values for JSON.

    seeds: > 0 adds raw pixels and that many fresh initialisations of the encoder.
    Raises UserError: shards without labels, the same shards twice, labels that cannot be compared, no recipe for the
    initialisations.
    """
    from vergence.platform.encoders.resize import RULE

    embedders: dict[str, Embedder] = {"encoder": encoder}
    if seeds:
        embedders["raw pixels"] = _pixels(encoder)
        embedders |= {f"seed {seed}": initialised(encoder, seed) for seed in range(seeds)}
    banks, tests = _labelled(train), _labelled(test)
    if banks.index.digest == tests.index.digest:
        raise UserError(f"{test}: --train and --test are the same shards, each test image would find itself")
    tests, compared = _in_one_numbering(banks, tests)
    bank = _features(banks, embedders, encoder.size)
    queries = _features(tests, embedders, encoder.size)
    top1 = {name: _top1(bank, queries, name) for name in embedders}
    results: dict[str, Any] = {"encoder": {"top1": top1["encoder"]}}
    if seeds:
        side = min(PIXELS, encoder.size)
        results["raw pixels"] = {"top1": top1["raw pixels"], "side": side, "features": PIXEL_FEATURES}
        initial = [top1[f"seed {seed}"] for seed in range(seeds)]
        mean = sum(initial) / seeds
        results["as initialised"] = {"top1": mean, "min": min(initial), "max": max(initial), "seeds": initial}
    return {
        "protocol": {
            "name": PROTOCOL,
            "k": min(K, len(bank.labels)),
            "temperature": TEMPERATURE,
            "features": "encoder output, float32, L2-normalised; vote exp(cosine / temperature)",
            "ties": "lower id, lower class",
            "input": f"{encoder.size} x {encoder.size}; {RULE}",
            "classes": compared,
            "bank": bank.about,
            "test": queries.about,
        },
        "encoder": {"name": encoder.name, "digest": encoder.digest, "dim": encoder.dim},
        "results": results,
    }


Embedder = Callable[["np.ndarray"], "np.ndarray"]  # uint8 (n, S, S, 3) -> (n, d)


@dataclass(frozen=True)
class Labelled:
    """One set of shards: its samples that have a class, before anything is read."""

    pattern: str
    index: "Index"
    ids: "np.ndarray"  # (n,) int64
    labels: "np.ndarray"  # (n,) int64
    names: list[str] | None  # of the classes, by label


class Features(NamedTuple):
    """What is known of one set of shards."""

    rows: "Mapping[str, np.ndarray]"  # embedder -> (n, d)
    labels: "np.ndarray"  # (n,) int64
    about: dict[str, Any]


def _labelled(pattern: str) -> Labelled:
    import numpy as np

    from vergence.platform.data.index import open_index
    from vergence.platform.data.labels import read_names

    index = open_index(pattern, home() / "index", progress=True)
    ids = np.arange(len(index), dtype=np.int64)
    labels = index.labels(ids)
    if labels is None:
        raise UserError(
            f"{pattern}: these shards have no labels (KEY.cls), and kNN is measured against labels"
        )
    ids, labels = ids[labels >= 0], labels[labels >= 0]
    names = index.classes or read_names({path.parent for path in index.shards})
    if names is not None and labels.max() >= len(names):
        raise UserError(f"{pattern}: holds class {labels.max()}, its classes.json names {len(names)} classes")
    return Labelled(pattern, index, ids, labels, names)


def _in_one_numbering(train: Labelled, test: Labelled) -> tuple[Labelled, str]:
    """The test set with the numbers of the training set, and how their classes are compared, in words.

    Raises UserError: a class of the test set has no counterpart, so that no comparison is right.
    """
    from vergence.platform.data.labels import by_name

    if train.names is None or test.names is None:
        named, other = (train, test) if test.names is None else (test, train)
        if named.index.classes:
            words = ", ".join(named.index.classes[:3])
            raise UserError(
                f"{named.pattern}: its classes are words ({words}, ...), those of {other.pattern} are numbers without "
                "names (classes.json), so they cannot be compared; pack both from sources with the same classes"
            )
        told = f": only {named.pattern} has names for them (classes.json)" if named.names else ""
        return test, f"compared by number{told}"
    labels, missing = by_name(test.labels, test.names, train.names)
    if missing:
        listed = ", ".join(f"{name} ({count:,} images)" for name, count in [*missing.items()][:3])
        raise UserError(
            f"{test.pattern}: has classes that {train.pattern} does not know: {listed}"
            f"{', ...' if len(missing) > 3 else ''}; give shards that were packed with the same classes"
        )
    told = "" if train.names == test.names else ": the two sets number them otherwise"
    return replace(test, labels=labels), f"compared by name{told}"


def _features(data: Labelled, embedders: Mapping[str, Embedder], size: int) -> Features:
    """All embeddings of all readable images with a class, in one pass over the shards."""
    import numpy as np

    from vergence.platform.data.progress import Bar
    from vergence.platform.encoders.images import shard_source, stream_images

    index, pattern = data.index, data.pattern
    good: list[np.ndarray] = []
    parts: dict[str, list[np.ndarray]] = {name: [] for name in embedders}
    with Bar(f"embedding {pattern}", len(data.ids), enabled=True) as advance:
        for some, images in stream_images(
            shard_source(index), data.ids, size, threads=physical_cpus(), progress=advance
        ):
            good.append(some)
            for name, embedder in embedders.items():
                parts[name].append(embedder(images))
    if not good:
        raise UserError(
            f"{pattern}: none of its {len(data.ids):,} images can be read; see `vergence shards check`"
        )
    kept = np.concatenate(good)
    about = {
        "shards": printable(pattern),
        "images": len(kept),
        "unreadable": len(data.ids) - len(kept),
        "unlabelled": len(index) - len(data.ids),
        "digest": index.digest,
        "notes": index.notes,
    }
    rows = {name: np.concatenate(batches) for name, batches in parts.items()}
    return Features(rows, data.labels[np.searchsorted(data.ids, kept)], about)


def _top1(bank: Features, queries: Features, name: str) -> float:
    from vergence.platform.evaluate.knn import knn_predict

    predicted = knn_predict(
        bank.rows[name],
        bank.labels,
        queries.rows[name],
        k=K,
        temperature=TEMPERATURE,
    )
    return float((predicted.numpy() == queries.labels).mean())


def _card(encoder: "LoadedEncoder") -> "EncoderCard":
    if encoder.card is None:
        raise UserError(
            f"{encoder.name}: --baselines needs the card encoder.json, which is not beside this encoder"
        )
    return encoder.card


def _pixels(encoder: "LoadedEncoder") -> Embedder:
    """(n, d) float32 pixels as the encoder is given them; on CIFAR-10 9 points above pixels that keep their mean."""
    import numpy as np

    from vergence.platform.encoders.resize import resize

    card, side = _card(encoder), min(PIXELS, encoder.size)
    mean, std = np.array(card.mean, np.float32) * 255, np.array(card.std, np.float32) * 255

    def embed(images: "np.ndarray") -> "np.ndarray":
        return np.stack([((resize(image, side) - mean) / std).reshape(-1) for image in images])

    return embed


def initialised(encoder: "LoadedEncoder", seed: int) -> Embedder:
    """The encoder before training, in eval mode (running statistics 0 and 1), from its run's recipe."""
    import torch

    from vergence.pipelines.recipe import Recipe, build_method
    from vergence.platform.encoders.export import PixelEncoder

    card = _card(encoder)
    if card.recipe is None:
        raise UserError(
            f"{encoder.name}: its card holds no recipe, so --baselines cannot build it as initialised"
        )
    method: Any = build_method(Recipe.parse(card.recipe, f"the recipe of {encoder.name}"), seed)
    model = PixelEncoder(method.encoder, card.mean, card.std).eval()

    def embed(images: "np.ndarray") -> "np.ndarray":
        with torch.inference_mode():
            rows: np.ndarray = model(torch.from_numpy(images)).numpy()
            return rows

    return embed


def _print(report: Mapping[str, Any]) -> None:
    """The table, and under it the protocol."""
    from rich.console import Console
    from rich.table import Table

    protocol, results = report["protocol"], report["results"]
    table = Table(title=f"{report['encoder']['name']}: {protocol['name']} top-1")
    table.add_column("")
    table.add_column("top-1", justify="right")
    table.add_column("", style="dim")
    for name, result in results.items():
        note = ""
        if "seeds" in result:
            note = f"{len(result['seeds'])} seeds, {result['min']:.4f} to {result['max']:.4f}"
        elif "side" in result:
            note = f"{result['side']} x {result['side']}, {result['features']}"
        table.add_row(name, f"{result['top1']:.4f}", note)
    console = Console()
    console.print(table)
    bank, test = protocol["bank"], protocol["test"]
    print(
        f"{protocol['name']}: bank {bank['images']:,} images of {bank['shards']}, test {test['images']:,} of "
        f"{test['shards']}; k {protocol['k']}, T {protocol['temperature']}; {protocol['features']}; "
        f"ties to the {protocol['ties']}; classes {protocol['classes']}"
    )
    unreadable = bank["unreadable"] + test["unreadable"]
    if unreadable:
        print(f"{unreadable:,} images cannot be read and were left out")
    for side in (bank, test):
        for note in side["notes"]:
            print(f"{side['shards']}: {note}")
